"""From interactions to an immutable release: what `trine train recommender` does.

training part of the split in time   -> a recipe is chosen on a split in time of it
training part of each split          -> the recipe is fitted and measured, beside popularity
all interactions                     -> the recipe is fitted: these towers are released
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from feature_store.source_files import DAY_US, day_name
from model_release.recommender import RecommenderRelease
from model_release.recommender_writer import RecommenderDraft, write_recommender

from models.recommender.card import model_card
from models.recommender.evaluation import SPLIT_SEED, Figures, measure_splits, training_histories
from models.recommender.exact_towers import exact
from models.recommender.histories import history_rule
from models.recommender.interactions import load_interactions
from models.recommender.recipe import Recipe
from models.recommender.splits import SplitName, split
from models.recommender.training import fit
from models.recommender.tuning import tune

MODEL = "recommender"


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """The release, the recipe that was chosen, and how it did."""

    release: RecommenderRelease
    recipe: Recipe
    figures: Figures


def train_release(
    dataset: Path | str,
    releases: Path | str,
    start: Recipe,
    tuned: bool = True,
    validate_by: SplitName = "time",
    to_us: int | None = None,
    advance: Callable[[float], None] = lambda _: None,
) -> Trained:
    """Trains on interactions before `to_us` (None: all) and writes the release.

    `tuned`: choose a recipe, beginning with `start`, by the split `validate_by`; otherwise `start` is taken. `advance`
    gets shares of the work, which add up to 1.

    Raises:
        TooLittleData: users, items or days are missing.
        feature_store.source_files.DatasetError: the dataset cannot be read.
        model_release.ReleaseError: the folder of a release of this content is there and damaged.
    """
    interactions = load_interactions(dataset, None, to_us)
    validation: dict[str, float | int] | None = None
    recipe = start
    if tuned:
        outer = split(interactions, validate_by, SPLIT_SEED)
        best = tune(split(outer.train, validate_by, SPLIT_SEED), start, lambda share: advance(0.75 * share))
        recipe, validation = best.recipe, best.validation.rounded()
    figures = measure_splits(interactions, recipe)
    advance(0.15)
    cutoff_us = interactions.end_us if to_us is None else to_us
    histories = training_histories(interactions, recipe, cutoff_us)
    towers = exact(fit(histories, len(interactions.item_ids), recipe), histories)
    advance(0.1)
    training: dict[str, Any] = {
        "from": day_name(int(interactions.time_us.min()) // DAY_US * DAY_US),
        "to": day_name(int(interactions.time_us.max()) // DAY_US * DAY_US),
        "cutoff_us": cutoff_us,
        "interactions": len(interactions.user),
        "users": len(interactions.user_ids),
        "items": len(interactions.item_ids),
        "recipe": asdict(recipe),
        "tuned_by": validate_by if tuned else None,
    }
    metrics: dict[str, Any] = {
        "validation": validation, "test": figures[validate_by]["towers"], "splits": figures,
    }  # fmt: skip
    draft = RecommenderDraft(
        model=MODEL,
        tower=towers.tower,
        item_ids=tuple(interactions.item_ids.to_pylist()),
        item_embeddings=towers.item_embeddings,
        item_popularity=np.bincount(histories.items, minlength=len(interactions.item_ids)),
        history=history_rule(recipe.half_life_days, interactions.typical_values if recipe.by_value else {}),
        model_card=model_card(training, metrics),
        metrics=metrics,
        training=training,
    )
    return Trained(write_recommender(releases, draft), recipe, figures)
