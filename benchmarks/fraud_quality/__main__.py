"""`make bench-fraud-quality`: the network and XGBoost over weekly folds; a table, then one line of JSON."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import sys
import time
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.fraud_quality.opponent import tune
from models.fraud.features import PLAN
from models.fraud.generator import generate
from models.fraud.generator_parameters import GeneratorParameters
from models.fraud.history import LabelledHistory, day_date, day_number, load_history
from models.fraud.metrics import Metrics
from models.fraud.protocol import Fold, measure_rows, test_rows
from models.fraud.release_training import fit_fold
from models.tabular.training import Recipe

TEST_STARTS = ("2018-07-04", "2018-07-11", "2018-07-18", "2018-07-25")
SIDES = ("network", "xgboost", "xgboost+quotients")
METRICS = ("auc_roc", "average_precision", "card_precision_100")


@dataclass(frozen=True, slots=True)
class Result:
    """One side on one fold; seconds of CPU for everything it did, tuning included."""

    metrics: Metrics
    cpu_s: float
    note: str


def main() -> None:
    """Runs the folds. Without --transactions, data is generated once into .run/."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fraud_quality", description=__doc__)
    parser.add_argument("--transactions", type=Path, help="dataset folder; see `trine data import`")
    parser.add_argument("--test-start", action="append", help="first test day of a fold; may be repeated")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    dataset = options.transactions or _generated()
    starts = options.test_start or TEST_STARTS
    folds = [Fold(day_number(dt.date.fromisoformat(start))) for start in starts]
    results = []
    for fold in folds:
        found = run_fold(dataset, fold, options.seed)
        results.append(found)
        for side in SIDES:
            _say(f"{day_date(fold.test_start)} {side}: {found[side].metrics.rounded()} {found[side].note}")
    _print_table(folds, results)
    print(json.dumps({"benchmark": "fraud_quality", **summary(folds, results)}))


def run_fold(dataset: Path, fold: Fold, seed: int) -> dict[str, Result]:
    """Every side on one fold, by the truth as known today."""
    history = load_history(dataset, PLAN, fold.validation().train_start, fold.test_end)
    rows = test_rows(history, fold)

    def measured(score: NDArray[np.floating]) -> Metrics:
        return measure_rows(history, rows, score, history.fraud)

    ours, seconds = _network(history, fold, rows, seed)
    results = {"network": Result(measured(ours), seconds, "")}
    for side, quotients in (("xgboost", False), ("xgboost+quotients", True)):
        tuned = tune(history, fold, seconds, quotients, seed)
        note = f"{tuned.trials} trials, chosen {tuned.parameters}"
        results[side] = Result(measured(tuned.score), tuned.cpu_s, note)
    return results


def summary(folds: list[Fold], results: list[dict[str, Result]]) -> dict[str, object]:
    """Means, and the paired differences network minus opponent with their standard errors over the folds."""
    line: dict[str, object] = {
        "folds": [str(day_date(fold.test_start)) for fold in folds],
        "cpu_s_per_fold": {side: round(float(np.mean([r[side].cpu_s for r in results])), 1) for side in SIDES},
    }
    values = {side: np.array([astuple(r[side].metrics) for r in results]) for side in SIDES}
    for i, metric in enumerate(METRICS):
        line[metric] = {side: [round(float(v), 4) for v in values[side][:, i]] for side in SIDES}
        difference, error = paired(values["network"][:, i] - values["xgboost"][:, i])
        line[f"{metric}_difference"] = {"mean": round(difference, 4), "standard_error": round(error, 4)}
        line[f"{metric}_holds"] = difference >= -error
        line[f"{metric}_above"] = difference > 0
    return line


def paired(differences: NDArray[np.float64]) -> tuple[float, float]:
    """Mean and standard error of the mean over folds; the error of a single fold counts as zero."""
    count = len(differences)
    return float(differences.mean()), float(differences.std(ddof=1) / count**0.5) if count > 1 else 0.0


def _network(
    history: LabelledHistory, fold: Fold, rows: NDArray[np.int64], seed: int
) -> tuple[NDArray[np.float64], float]:
    """What `trine train fraud` does for a fold: a fit for validation and one for the release. Scores and CPU time."""
    recipe, earlier = Recipe(seed=seed), fold.validation()
    torch.set_num_threads(1)
    began = time.process_time()
    fit_fold(history, earlier, test_rows(history, earlier), recipe)
    scored = fit_fold(history, fold, rows, recipe)
    return scored.logit, time.process_time() - began


def _generated() -> Path:
    out = Path(".run/bench-fraud-quality/dataset")
    out.parent.mkdir(parents=True, exist_ok=True)
    _say(f"no --transactions: generating data into {out} (kept for the next run)")
    generate(GeneratorParameters(), out)
    return out


def _print_table(folds: list[Fold], results: list[dict[str, Result]]) -> None:
    table = Table(title="Fraud detection quality, test weeks; same features, tuned on validation days")
    for column in ("test week", "side", "AUC ROC", "average precision", "card precision@100", "CPU s"):
        table.add_column(column, justify="left" if column in ("test week", "side") else "right")
    for fold, found in zip(folds, results, strict=True):
        for side in SIDES:
            table.add_row(
                str(day_date(fold.test_start)),
                side,
                *(f"{value:.4f}" for value in astuple(found[side].metrics)),
                f"{found[side].cpu_s:.0f}",
            )
        table.add_section()
    for side in SIDES:
        means = np.mean([astuple(found[side].metrics) for found in results], axis=0)
        cpu = float(np.mean([found[side].cpu_s for found in results]))
        table.add_row("mean", side, *(f"{value:.4f}" for value in means), f"{cpu:.0f}")
    Console().print(table)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
