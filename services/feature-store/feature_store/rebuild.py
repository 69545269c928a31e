"""Feature state made from history: a new version of it, complete before anybody reads it.

The cut is exclusive: events before T, labels known before T. The new version's shards stand at the beginning of their
logs, so the worker goes through everything the topics still hold; what the history held already is known by its id
and changes nothing. So there is neither a gap nor a double count, wherever the history ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import redis

from feature_store import keys as names
from feature_store.admission import UNSET_CLOCK
from feature_store.codec import StateCodec
from feature_store.dataset import load_sources
from feature_store.definitions import FeaturePlan, FeatureView
from feature_store.history import History, history_of, view_points
from feature_store.kernel import Labels, Points
from feature_store.sharding import shards_of
from feature_store.state import merge

_BATCH = 2_000


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What a rebuild made: the version now served, and per view how many entities and bytes."""

    version: str
    cut_us: int
    events: int
    entities: dict[str, int]
    state_bytes: dict[str, int]


def rebuild(
    client: redis.Redis,
    plan: FeaturePlan,
    dataset: str | Path,
    until_us: int,
    shards: int,
    advance: Callable[[int], None] = lambda entities: None,
) -> Rebuilt:
    """Build state from the dataset's events before `until_us`, write it as the next version, then serve it.

    `advance` is told how many entities were written. Until the last step nobody sees anything of it; a rebuild that
    was stopped leaves an unused version, which the next one overwrites. Raises feature_store.dataset.DatasetError,
    redis.exceptions.RedisError.
    """
    reach = max(view.retention_us for view in plan.views)
    history = history_of(plan, *load_sources(dataset, plan, until_us - reach, until_us, known_before_us=until_us))
    served = client.get(names.VERSION_POINTER)
    # The first version is the one that begins empty: a replay of decisions relies on that.
    version = str(int(served or names.FIRST_VERSION) + 1)
    _delete_version(client, version)
    counts, sizes = {}, {}
    for view in plan.views:
        counts[view.name] = sizes[view.name] = 0
        for batch in _states(view, history, shards):
            pipe = client.pipeline(transaction=False)
            for key, shard, state in batch:
                pipe.set(names.state_prefix(view.entity.name, shard, version, view.name) + key, state)
                sizes[view.name] += len(state)
            pipe.execute()
            counts[view.name] += len(batch)
            advance(len(batch))
    _write_positions(client, plan, version, shards)
    client.hset(
        names.version_info(version),
        mapping={"cut_us": until_us, "dataset": Path(dataset).name, "built_at_us": time.time_ns() // 1_000},
    )
    client.set(names.VERSION_POINTER, version)
    if served and int(served) > 1:
        _delete_version(client, str(int(served) - 1))
    return Rebuilt(version, until_us, len(history.time_us), counts, sizes)


def _states(view: FeatureView, history: History, shards: int) -> Iterator[list[tuple[str, int, bytes]]]:
    """(key, shard, state) of every entity, in batches."""
    entity = history.entities[view.entity.name]
    points, _ = view_points(view, history)
    points = merge(view, points, None, None).points  # what lies past an entity's own retention goes
    shard = shards_of(entity.keys, shards)
    for first in range(0, len(entity.keys), _BATCH):
        last = min(first + _BATCH, len(entity.keys))
        part = _groups(points, first, last)
        blobs = StateCodec(view).encode(part, last - first)
        yield list(zip(entity.keys[first:last], shard[first:last].tolist(), blobs, strict=True))


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


def _write_positions(client: redis.Redis, plan: FeaturePlan, version: str, shards: int) -> None:
    pipe = client.pipeline(transaction=False)
    for entity in plan.entities:
        for shard in range(shards):
            position: dict[str, str | int] = {
                "topic": plan.topic_of(entity.name),
                "topic_id": "",
                "offset": 0,
                "clock": UNSET_CLOCK,
            }
            pipe.hset(names.meta(entity.name, shard, version), mapping=dict(position.items()))
    pipe.execute()


def _delete_version(client: redis.Redis, version: str) -> None:
    pipe = client.pipeline(transaction=False)
    for key in client.scan_iter(match=f"{{*.{version}}}*", count=5_000):
        pipe.unlink(key)
        if len(pipe) >= _BATCH:
            pipe.execute()
    pipe.execute()
