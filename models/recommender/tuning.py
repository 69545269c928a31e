"""Choosing a recipe by what it makes of a validation part, held out of the training part: one setting after another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from models.recommender.evaluation import measure_recipe
from models.recommender.metrics import RankingMetrics
from models.recommender.recipe import Recipe
from models.recommender.splits import Split

SETTINGS: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("half_life_days", (30.0, 90.0, 180.0)),
    ("l2", (1e-4, 2e-4, 4e-4)),
    ("hidden", (0.3, 0.7)),
    ("by_value", (True,)),
)
"""What is tried, in this order (Any: each setting has its own type); the best so far is kept."""
TRIALS = 1 + sum(len(values) for _, values in SETTINGS)


@dataclass(frozen=True, slots=True)
class Tuned:
    """The recipe with the greatest nDCG on the validation part, and that."""

    recipe: Recipe
    validation: RankingMetrics


def tune(held: Split, start: Recipe, advance: Callable[[float], None] = lambda _: None) -> Tuned:
    """TRIALS fits. `advance` gets shares of the work, which add up to 1."""

    def tried(recipe: Recipe) -> Tuned:
        found = Tuned(recipe, measure_recipe(held, recipe))
        advance(1.0 / TRIALS)
        return found

    best = tried(start)
    for name, values in SETTINGS:
        for value in values:
            found = tried(replace(best.recipe, **{name: value}))
            if found.validation.ndcg_at_10 > best.validation.ndcg_at_10:
                best = found
    return best
