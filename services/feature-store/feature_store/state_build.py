"""States of many entities from their events and labels, written to Redis under a version that nobody reads yet.

One process does it for everything, or Spark's executors each for their groups (`spark_rebuild`): the same function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import redis

from feature_store import keys as names
from feature_store.codec import StateCodec
from feature_store.definitions import FeatureView
from feature_store.kernel import Labels, Points
from feature_store.sharding import shards_of
from feature_store.state import merge

_BATCH = 2_000


@dataclass(frozen=True, slots=True)
class Written:
    """Of one view, or of a part of it."""

    entities: int
    state_bytes: int
    events: int

    def __add__(self, other: Written) -> Written:
        return Written(self.entities + other.entities, self.state_bytes + other.state_bytes, self.events + other.events)


def write_states(
    client: redis.Redis,
    view: FeatureView,
    keys: Sequence[str],
    points: Points,
    shards: int,
    version: str,
    advance: Callable[[int], None] = lambda entities: None,
) -> Written:
    """The state of every entity in `keys`; groups of `points` are places in it. Doing it again writes the same bytes.

    What lies past an entity's own retention goes. Raises redis.exceptions.RedisError.
    """
    events = len(points.id)
    points = merge(view, points, None, None).points
    shard = shards_of(keys, shards).tolist()
    codec = StateCodec(view)
    size = 0
    for first in range(0, len(keys), _BATCH):
        last = min(first + _BATCH, len(keys))
        pipe = client.pipeline(transaction=False)
        for i, state in enumerate(codec.encode(_groups(points, first, last), last - first), first):
            pipe.set(names.state_prefix(view.entity.name, shard[i], version, view.name) + keys[i], state)
            size += len(state)
        pipe.execute()
        advance(last - first)
    return Written(len(keys), size, events)


def _groups(points: Points, first: int, last: int) -> Points:
    """The points of groups first to last - 1, renumbered from 0."""
    rows = slice(*np.searchsorted(points.group, (first, last)).tolist())
    labels = points.labels
    if labels is not None:
        at = slice(*np.searchsorted(labels.group, (first, last)).tolist())
        labels = Labels(
            labels.group[at] - first, labels.id[at], labels.time_us[at], labels.known_at_us[at], labels.value[at]
        )
    columns = {name: values[rows] for name, values in points.columns.items()}
    return Points(points.group[rows] - first, points.time_us[rows], points.id[rows], columns, labels)
