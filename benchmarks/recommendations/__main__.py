"""`make bench-recommendations`: the towers, popularity and BPR on two splits; a table, then one line of JSON."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.recommendations.opponent import measure_opponent, tune_opponent
from models.recommender.evaluation import measure_popularity, measure_recipe
from models.recommender.generator import generate
from models.recommender.generator_parameters import GeneratorParameters
from models.recommender.interactions import Interactions, load_interactions
from models.recommender.metrics import RankingMetrics
from models.recommender.recipe import Recipe
from models.recommender.splits import SPLITS, SplitName, split
from models.recommender.tuning import TRIALS, tune

# The frozen set: these parameters and this seed.
FROZEN = GeneratorParameters(
    users=2_000, items=1_500, days=180, seed=20_260, views=120.0, tastes=12, zipf=0.8, user_spread=0.1,
    item_spread=0.03, wandering=0.1, drift=0.4, new_share=0.2, popularity_half_life=90.0, activity_spread=0.8,
    like_share=0.3,
)  # fmt: skip
SIDES = ("towers", "bpr", "popularity", "recent popularity")
METRICS = ("ndcg_at_10", "precision_at_10", "recall_at_10")
HALF_LIVES = (7.0, 14.0, 30.0, 60.0, 90.0, 180.0)


@dataclass(frozen=True, slots=True)
class Result:
    """One side on one split and seed; what tuning chose, after how many trials and CPU seconds."""

    metrics: RankingMetrics
    chosen: str
    trials: int
    tuning_cpu_s: float


def main() -> None:
    """Runs both splits for each seed. Without --interactions, the frozen set is generated once into .run/."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recommendations", description=__doc__)
    parser.add_argument("--interactions", type=Path, help="dataset folder; see `trine data import --kind interactions`")
    parser.add_argument("--seeds", type=int, default=3, help="of the random split, the towers and BPR")
    options = parser.parse_args()
    interactions = load_interactions(options.interactions or _generated())
    results: dict[tuple[SplitName, int], dict[str, Result]] = {}
    for name in SPLITS:
        for seed in range(options.seeds):
            results[name, seed] = found = run(interactions, name, seed)
            for side in SIDES:
                one = found[side]
                tuned = f"{one.trials} trials {one.tuning_cpu_s:.0f} s {one.chosen}"
                _say(f"{name} {seed} {side}: {one.metrics.rounded()} {tuned}")
    _print_table(results)
    print(json.dumps({"benchmark": "recommendations", **summary(results)}))


def run(interactions: Interactions, name: SplitName, seed: int) -> dict[str, Result]:
    """Every side on one split, tuned on a split of the same kind of its training part."""
    outer = split(interactions, name, seed)
    inner = split(outer.train, name, seed)
    began = time.process_time()
    ours = tune(inner, Recipe(seed=seed))
    seconds = time.process_time() - began
    theirs = tune_opponent(inner, seconds, TRIALS, seed)
    recent = max(HALF_LIVES, key=lambda days: measure_popularity(inner, days).ndcg_at_10)
    recipe = ours.recipe
    chosen = f"l2 {recipe.l2}, hidden {recipe.hidden}, half-life {recipe.half_life_days}, by value {recipe.by_value}"
    return {
        "towers": Result(measure_recipe(outer, recipe), chosen, TRIALS, seconds),
        "bpr": Result(
            measure_opponent(outer, theirs.parameters, seed), str(theirs.parameters), theirs.trials, theirs.cpu_s
        ),
        "popularity": Result(measure_popularity(outer), "", 0, 0.0),
        "recent popularity": Result(measure_popularity(outer, recent), f"half-life {recent}", len(HALF_LIVES), 0.0),
    }


def summary(results: dict[tuple[SplitName, int], dict[str, Result]]) -> dict[str, object]:
    """Medians over seeds by split and side; ratios of the towers' to the others' nDCG, the less good split first."""
    line: dict[str, object] = {}
    vs: dict[str, list[float]] = {"bpr": [], "popularity": []}
    for name in SPLITS:
        medians = {side: _medians([found[side] for (at, _), found in results.items() if at == name]) for side in SIDES}
        line[name] = medians
        vs["bpr"].append(medians["towers"]["ndcg_at_10"] / medians["bpr"]["ndcg_at_10"])
        best = max(medians["popularity"]["ndcg_at_10"], medians["recent popularity"]["ndcg_at_10"])
        vs["popularity"].append(medians["towers"]["ndcg_at_10"] / best)
        line[f"ndcg_vs_bpr_{name}"], line[f"ndcg_vs_popularity_{name}"] = (round(vs[side][-1], 4) for side in vs)
    for side, ratios in vs.items():
        line[f"ndcg_vs_{side}"] = round(min(ratios), 4)
    return line


def _medians(results: list[Result]) -> dict[str, float]:
    return {metric: round(float(np.median([getattr(r.metrics, metric) for r in results])), 4) for metric in METRICS}


def _generated() -> Path:
    out = Path(".run/bench-recommendations/dataset")
    out.parent.mkdir(parents=True, exist_ok=True)
    _say(f"no --interactions: generating the frozen set into {out} (kept for the next run)")
    generate(FROZEN, out, overwrite=True)
    return out


def _print_table(results: dict[tuple[SplitName, int], dict[str, Result]]) -> None:
    table = Table(title="Recommendations at 10, medians over seeds; tuned on the training part, with equal budgets")
    for column in ("split", "side", "nDCG", "precision", "recall", "trials", "tuning CPU s"):
        table.add_column(column, justify="left" if column in ("split", "side") else "right")
    for name in SPLITS:
        for side in SIDES:
            here = [found[side] for (at, _), found in results.items() if at == name]
            medians = _medians(here)
            table.add_row(
                name, side, *(f"{medians[metric]:.4f}" for metric in METRICS),
                f"{np.median([r.trials for r in here]):.0f}", f"{np.median([r.tuning_cpu_s for r in here]):.0f}",
            )  # fmt: skip
        table.add_section()
    Console().print(table)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
