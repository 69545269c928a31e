"""Two ways of holding interactions out: a quarter of every user's items at random, and the last quarter of the time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from models.recommender.errors import TooLittleData
from models.recommender.interactions import Interactions

HELD_OUT = 0.25
SplitName = Literal["user", "time"]
SPLITS: tuple[SplitName, ...] = ("user", "time")


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """What is trained on, as of `cutoff_us`, and what is held out: pairs int64 [m], none of them in training."""

    train: Interactions
    cutoff_us: int
    held_user: NDArray[np.int64]
    held_item: NDArray[np.int64]


def split(interactions: Interactions, name: SplitName, seed: int) -> Split:
    """`user`: 75/25 of each user's items at random; `time`: the first 75% of interactions, then the later ones.

    A user and an item count once: what a user had before is not held out later. Users with nothing to train on are
    held out of both sides. Raises TooLittleData where nothing is left to train on or to measure.
    """
    pair = interactions.pair
    items = len(interactions.item_ids)
    if name == "user":
        distinct = np.unique(pair)
        held = _quarter(distinct // items, np.random.default_rng([seed, *b"split"]))
        chosen, cutoff_us = ~np.isin(pair, distinct[held]), interactions.end_us
    else:
        cutoff_us = int(np.quantile(interactions.time_us, 1.0 - HELD_OUT, method="higher"))
        chosen = interactions.time_us < cutoff_us
    train = interactions.where(chosen)
    later = np.setdiff1d(pair[~chosen], pair[chosen])
    later = later[np.isin(later // items, train.user)]
    if not len(train.user) or not len(later):
        raise TooLittleData(
            f"split by {name}: {len(train.user)} interactions to train on and {len(later)} items to measure on; "
            "more users, items or days are needed"
        )
    return Split(train, cutoff_us, later // items, later % items)


def _quarter(user: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.bool_]:
    """bool [n]: of each user's rows, in order of users, a quarter (rounded) at random."""
    order = np.lexsort((random.random(len(user)), user))
    counts = np.bincount(user)
    rank = np.arange(len(user)) - np.repeat(np.cumsum(counts) - counts, counts)
    held = np.zeros(len(user), dtype=np.bool_)
    held[order] = rank < np.rint(HELD_OUT * counts)[user]
    return held
