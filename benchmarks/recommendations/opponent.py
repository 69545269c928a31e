"""The opponent: Bayesian personalised ranking (Rendle et al., 2009) as cornac has it, tuned on the validation part.

Uniform negatives, item biases, SGD: the implementation and protocol that published MovieLens figures are of.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass

import numpy as np
from cornac.data import Dataset  # type: ignore[import-not-found, import-untyped, unused-ignore]
from cornac.models import BPR  # type: ignore[import-not-found, import-untyped, unused-ignore]
from model_release.retrieval import top_unseen

from models.recommender.evaluation import TOP, training_histories
from models.recommender.metrics import RankingMetrics, ranking_metrics
from models.recommender.recipe import Recipe
from models.recommender.splits import Split

Parameters = dict[str, float | int]


def candidates(seed: int) -> list[Parameters]:
    """A grid around what published comparisons use (200 factors, 200 epochs, 0.01, 0.001), in random order; theirs
    first."""
    published: Parameters = {"k": 200, "max_iter": 200, "learning_rate": 0.01, "lambda_reg": 0.001}
    grid: list[Parameters] = [
        {"k": k, "max_iter": epochs, "learning_rate": rate, "lambda_reg": decay}
        for k, epochs, rate, decay in itertools.product(
            (20, 50, 100, 200), (100, 200, 400), (0.003, 0.01, 0.03), (0.001, 0.01, 0.02, 0.03, 0.04, 0.05, 0.07)
        )
    ]
    return [published, *(grid[i] for i in np.random.default_rng(seed).permutation(len(grid)))]


@dataclass(frozen=True, slots=True)
class TunedOpponent:
    """The parameters with the greatest nDCG on the validation part, how many were tried, CPU seconds for that."""

    parameters: Parameters
    trials: int
    cpu_s: float


def tune_opponent(held: Split, budget_s: float, least_trials: int, seed: int) -> TunedOpponent:
    """Tries candidates until `budget_s` of CPU time are used, and `least_trials` at least."""
    began = time.process_time()
    tried: list[tuple[float, Parameters]] = []
    for parameters in candidates(seed):
        if len(tried) >= least_trials and time.process_time() - began >= budget_s:
            break
        tried.append((measure_opponent(held, parameters, seed).ndcg_at_10, parameters))
    best = max(tried, key=lambda one: one[0])[1]
    return TunedOpponent(best, len(tried), time.process_time() - began)


def measure_opponent(held: Split, parameters: Parameters, seed: int) -> RankingMetrics:
    """BPR fitted on a split's training part and measured on the rest, by the same code as ours."""
    seen = training_histories(held.train, Recipe(), held.cutoff_us)
    triples = list(zip(seen.user.tolist(), seen.items.tolist(), itertools.repeat(1.0)))
    data = Dataset.from_uir(triples, seed=seed)
    model = BPR(seed=seed, num_threads=1, **parameters).fit(data)
    items = np.zeros((len(held.train.item_ids), model.i_factors.shape[1] + 1), dtype=np.float32)
    # Items that nobody had in training come last.
    items[:, -1] = -1e6
    known = np.fromiter(data.iid_map, dtype=np.int64)
    items[known] = np.column_stack([model.i_factors, model.i_biases])
    users = np.ones((len(held.train.user_ids), items.shape[1]), dtype=np.float32)
    users[np.fromiter(data.uid_map, dtype=np.int64), :-1] = model.u_factors
    asked, row = np.unique(held.held_user, return_inverse=True)
    histories = seen.of(asked)
    ranking = top_unseen(users[asked], items, histories.items, histories.starts, TOP)
    return ranking_metrics(ranking.items, row, held.held_item)
