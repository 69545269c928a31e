"""Measuring: a recipe fitted anew on each split's training part, and a release on what came after its training."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feature_store.source_files import DAY_US, times_us
from model_release.recommender import RecommenderRelease
from model_release.retrieval import top_unseen

from models.recommender.errors import TooLittleData
from models.recommender.exact_towers import ExactTowers, exact
from models.recommender.histories import Histories, histories_of, history_rule
from models.recommender.interactions import Interactions, interactions_of, load_table
from models.recommender.metrics import RankingMetrics, ranking_metrics
from models.recommender.recipe import Recipe
from models.recommender.scoring import Recommender
from models.recommender.splits import SPLITS, Split, split
from models.recommender.training import fit

TOP = 10
SPLIT_SEED = 0
LATER = "after training"
#: Figures by split, then by side: `towers`, `popularity`, or `release`.
Figures = dict[str, dict[str, dict[str, float | int]]]


def evaluate_release(
    release: RecommenderRelease, dataset: Path | str, advance: Callable[[float], None] = lambda _: None
) -> Figures:
    """The release's recipe on both splits of any interactions; under LATER, the release itself, where it can be.

    `advance` gets shares of the work, which add up to 1. Raises TooLittleData, feature_store.source_files.DatasetError.
    """
    recipe = Recipe(**cast(dict[str, Any], release.manifest.training["recipe"]))
    table = load_table(dataset)
    figures = measure_splits(interactions_of(table), recipe, advance)
    cutoff_us = cast(int, release.manifest.training["cutoff_us"])
    with suppress(TooLittleData):
        figures[LATER] = {"release": measure_release(release, table, cutoff_us).rounded()}
    return figures


def measure_splits(
    interactions: Interactions, recipe: Recipe, advance: Callable[[float], None] = lambda _: None
) -> Figures:
    """The recipe and popularity on both splits. `advance` as in `evaluate_release`. Raises TooLittleData."""
    figures: Figures = {}
    for name in SPLITS:
        held = split(interactions, name, SPLIT_SEED)
        towers, popularity = measure_recipe(held, recipe), measure_popularity(held)
        figures[name] = {"towers": towers.rounded(), "popularity": popularity.rounded()}
        advance(1.0 / len(SPLITS))
    return figures


def training_histories(interactions: Interactions, recipe: Recipe, cutoff_us: int) -> Histories:
    """All users' histories, weighed as the recipe says."""
    typical = interactions.typical_values if recipe.by_value else {}
    return histories_of(interactions, history_rule(recipe.half_life_days, typical), cutoff_us)


def fit_split(held: Split, recipe: Recipe) -> tuple[ExactTowers, Histories]:
    """Towers fitted on a split's training part, and its histories."""
    histories = training_histories(held.train, recipe, held.cutoff_us)
    return exact(fit(histories, len(held.train.item_ids), recipe), histories), histories


def measure_recipe(held: Split, recipe: Recipe) -> RankingMetrics:
    """What towers of this recipe, fitted on the training part, make of the held-out part."""
    towers, histories = fit_split(held, recipe)
    users, row = np.unique(held.held_user, return_inverse=True)
    return ranking_metrics(towers.rank(histories.of(users), TOP).items, row, held.held_item)


def measure_popularity(held: Split, half_life_days: float | None = None) -> RankingMetrics:
    """What the items with the most users (each weighing less the longer ago) make of the held-out part."""
    histories = histories_of(held.train, history_rule(half_life_days, {}), held.cutoff_us)
    users, row = np.unique(held.held_user, return_inverse=True)
    seen = histories.of(users)
    popularity = np.bincount(histories.items, histories.weights, minlength=len(held.train.item_ids))
    everybody = np.ones((len(users), 1), dtype=np.float32)
    ranked = top_unseen(everybody, popularity.astype(np.float32)[:, None], seen.items, seen.starts, TOP)
    return ranking_metrics(ranked.items, row, held.held_item)


def measure_release(release: RecommenderRelease, table: pa.Table, from_us: int) -> RankingMetrics:
    """What a release, as it is, recommends as of `from_us` to users with a history, and what they then chose anew.

    `table`: interactions with the columns of `INTERACTION_FILES`, before and after. Items that the release does not
    know count as missed. Raises TooLittleData where nobody chose anything new.
    """
    numbered = interactions_of(table)
    before = times_us(table, "event_time") < from_us
    later = np.setdiff1d(numbered.pair[~before], numbered.pair[before])
    users = np.unique(numbered.user[before])
    held_user, held_item = later // len(numbered.item_ids), later % len(numbered.item_ids)
    asked = np.isin(held_user, users)
    if not asked.any():
        raise TooLittleData("no user with a history before chose an item that was new to them")
    recommender = Recommender(release)
    earlier = table.filter(pa.array(before)).combine_chunks()
    histories = recommender.histories(
        len(users),
        np.searchsorted(users, numbered.user[before]),
        earlier.column("item_id").combine_chunks(),
        (from_us - times_us(earlier, "event_time")) // DAY_US,
        earlier.column("kind").combine_chunks(),
        np.asarray(earlier.column("value").to_numpy(), dtype=np.float64),
    )
    ranking = recommender.rank(recommender.embed(histories), histories, TOP)
    # The release's items by their numbers here; those that nobody here had, by -1.
    ids = pa.array(release.item_ids, pa.string())
    here = np.asarray(pc.fill_null(pc.index_in(ids, value_set=numbered.item_ids), -1).to_numpy(), dtype=np.int64)
    ranked = np.where(ranking.items >= 0, here[ranking.items], -1)
    return ranking_metrics(ranked, np.searchsorted(users, held_user[asked]), held_item[asked])
