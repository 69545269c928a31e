"""Makes a dataset of interactions by the process that `generator_parameters` describes, the same for the same seed.

Vectorised: a day of all users at once. Every day draws from its own random stream, made of the seed and the day.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from feature_store.dataset import DAY_US, TIME_TYPE
from feature_store.dataset_writer import DatasetWriter, description_of
from numpy.typing import NDArray

from models.recommender.errors import ParameterError
from models.recommender.generator_parameters import GeneratorParameters
from models.recommender.sources import INTERACTION_FILES

MADE_BY = "trine data generate --kind interactions"
# Goes up with every change that makes other data of the same parameters.
PROCESS = 1
VIEW, LIKE = "view", "like"
_LIKE_WITHIN_S = 600


@dataclass(frozen=True, slots=True, eq=False)
class World:
    """U users, I items, T tastes. Shares float64; days int64, counted from the first day.

    tastes [2, U, T]: what each user likes at first and later, rows add up to 1; joined [U]; activity [U]: mean views a
    day after joining. item_tastes [T, I]: columns add up to 1; popularity [I] at its release; released [I].
    """

    tastes: NDArray[np.float64]
    joined: NDArray[np.int64]
    activity: NDArray[np.float64]
    item_tastes: NDArray[np.float64]
    popularity: NDArray[np.float64]
    released: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Interactions:
    """n interactions of one day in time order: second of the day int64, user int64, item int64, like bool, value."""

    second: NDArray[np.int64]
    user: NDArray[np.int64]
    item: NDArray[np.int64]
    like: NDArray[np.bool_]
    value: NDArray[np.float64]


def generate(
    parameters: GeneratorParameters,
    out: str | Path,
    overwrite: bool = False,
    advance: Callable[[int], None] = lambda days: None,
) -> tuple[dict[str, Any], bool]:
    """Writes the dataset folder `out`; returns its description (as in dataset.json) and whether it was made now.

    A dataset at `out` that was made with the same parameters is left as it is. `advance` is called with days done.
    Raises ParameterError where they make no interaction at all, DatasetError where something else is at `out` and
    `overwrite` is False.
    """
    made = {"made_by": MADE_BY, "process": PROCESS, "parameters": parameters.to_json()}
    present = description_of(out)
    if present is not None and made.items() <= present.items():
        return present, False
    with DatasetWriter(out, overwrite) as writer:
        world = make_world(parameters)
        start_us = (parameters.start - dt.date(1970, 1, 1)).days * DAY_US
        # user * items + item of every view so far, sorted.
        seen = np.empty(0, dtype=np.int64)
        users, items = np.zeros(parameters.users, np.bool_), np.zeros(parameters.items, np.bool_)
        rows = likes = 0
        for day in range(parameters.days):
            found, seen = make_day(world, parameters, day, seen)
            if len(found.user):
                day_us = start_us + day * DAY_US
                writer.write_day(INTERACTION_FILES, day_us, _table(found, day_us, rows))
            users[found.user] = items[found.item] = True
            rows += len(found.user)
            likes += int(found.like.sum())
            advance(1)
        if not rows:
            raise ParameterError("these parameters make no interaction; ask for more users, views or days")
        counts = {"interactions": rows, "likes": likes, "users": int(users.sum()), "items": int(items.sum())}
        return writer.finish({**made, **counts}), True


def make_world(parameters: GeneratorParameters) -> World:
    """Users and items, as the process draws them."""
    users, items, tastes, days = parameters.users, parameters.items, parameters.tastes, parameters.days
    random = np.random.default_rng([parameters.seed, *b"users"])
    liked = random.dirichlet(np.full(tastes, parameters.user_spread), (2, users))
    joined = random.integers(0, days // 2 + 1, users)
    activity = random.lognormal(-(parameters.activity_spread**2) / 2, parameters.activity_spread, users)
    random = np.random.default_rng([parameters.seed, *b"items"])
    item_tastes = random.dirichlet(np.full(tastes, parameters.item_spread), items)
    popularity = random.permutation(np.arange(1, items + 1, dtype=np.float64) ** -parameters.zipf)
    new = random.random(items) < parameters.new_share
    # At least one item is there on the first day.
    new[np.argmax(popularity)] = False
    released = np.where(new, random.integers(0, days, items), -random.integers(0, 2 * days, items))
    return World(
        tastes=liked,
        joined=joined,
        activity=activity * parameters.views / (days - joined),
        item_tastes=np.ascontiguousarray(item_tastes.T),
        popularity=popularity,
        released=released,
    )


def make_day(
    world: World, parameters: GeneratorParameters, day: int, seen: NDArray[np.int64]
) -> tuple[Interactions, NDArray[np.int64]]:
    """One day's interactions. `seen`: user * items + item of all earlier views, sorted; returned with this day's."""
    random = np.random.default_rng([parameters.seed, *b"day", day])
    user = np.repeat(np.arange(parameters.users), random.poisson(np.where(world.joined <= day, world.activity, 0.0)))
    later = random.random(len(user)) < parameters.drift * day / max(parameters.days - 1, 1)
    liked = world.tastes[later.astype(np.int64), user]
    taste = _choice(np.cumsum(liked, axis=1), random.random(len(user)))
    # One more taste, that of everybody: popularity alone.
    taste[random.random(len(user)) < parameters.wandering] = parameters.tastes
    age = day - world.released
    weight = np.where(age >= 0, world.popularity * 0.5 ** (age / parameters.popularity_half_life), 0.0)
    shelves = np.cumsum(np.concatenate([world.item_tastes, np.ones((1, parameters.items))]) * weight, axis=1)
    # All shelves in one line, each one unit long.
    line = (shelves / shelves[:, -1:] + np.arange(parameters.tastes + 1)[:, None]).ravel()
    place = np.searchsorted(line, taste + random.random(len(user)), side="right")
    item = np.minimum(place - taste * parameters.items, parameters.items - 1)

    pair = user * parameters.items + item
    first = np.zeros(len(pair), dtype=np.bool_)
    first[np.unique(pair, return_index=True)[1]] = True
    first &= ~_contains(seen, pair)
    user, item, pair, liked = user[first], item[first], pair[first], liked[first]

    match = (liked * world.item_tastes[:, item].T).sum(axis=1)
    share = random.beta(0.5 + 4.0 * match, 1.5)
    second = random.integers(0, 86_400 - _LIKE_WITHIN_S, len(user))
    like = random.random(len(user)) < np.minimum(2.0 * parameters.like_share * share, 1.0)
    soon = random.integers(1, _LIKE_WITHIN_S, len(user))
    # At least a thousandth: 0 would say that nothing happened.
    value = np.maximum(np.rint(share * 1000) / 1000, 0.001)
    rows = Interactions(
        second=np.concatenate([second, (second + soon)[like]]),
        user=np.concatenate([user, user[like]]),
        item=np.concatenate([item, item[like]]),
        like=np.repeat([False, True], [len(user), int(like.sum())]),
        value=np.concatenate([value, np.ones(int(like.sum()))]),
    )
    order = np.lexsort((rows.like, rows.item, rows.user, rows.second))
    ordered = Interactions(*(getattr(rows, name)[order] for name in Interactions.__slots__))
    # Two sorted runs: merged in one pass.
    return ordered, np.sort(np.concatenate([seen, np.sort(pair)]), kind="stable")


def _choice(cumulative: NDArray[np.float64], draws: NDArray[np.float64]) -> NDArray[np.int64]:
    """int64[n]: the column of each row of shares [n, T], cumulated, in which its draw falls."""
    found: NDArray[np.int64] = (cumulative < draws[:, None] * cumulative[:, -1:]).sum(axis=1, dtype=np.int64)
    return found


def _contains(values: NDArray[np.int64], asked: NDArray[np.int64]) -> NDArray[np.bool_]:
    """bool[n]: which of `asked` are among the sorted `values`."""
    if not len(values):
        return np.zeros(len(asked), dtype=np.bool_)
    place = np.minimum(np.searchsorted(values, asked), len(values) - 1)
    return np.asarray(values[place] == asked, dtype=np.bool_)


def _table(found: Interactions, day_us: int, first_id: int) -> pa.Table:
    count = len(found.user)
    return pa.table(
        {
            # Ids are numbers in event-time order.
            "interaction_id": _decimal(np.arange(first_id, first_id + count)),
            "user_id": _decimal(found.user),
            "item_id": _decimal(found.item),
            "event_time": pa.array(day_us + found.second * 1_000_000).cast(TIME_TYPE),
            "kind": pa.array(np.where(found.like, LIKE, VIEW)),
            "value": pa.array(found.value),
        },
        schema=INTERACTION_FILES.schema,
    )


def _decimal(numbers: NDArray[np.int64]) -> pa.Array[Any]:
    return pa.array(numbers).cast(pa.string())
