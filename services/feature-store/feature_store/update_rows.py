"""The rows of several shards' updates as one view's events and labels, and back to where each row came from. No I/O."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from operator import itemgetter

import numpy as np

from feature_store.definitions import FeatureView
from feature_store.kernel import Int64s, Labels
from feature_store.state import NewEvents
from feature_store.update_types import EventColumns, ShardUpdate

Origins = list[tuple[int, int, int]]  # first row, shard, part


def events_of(
    view: FeatureView, updates: Sequence[ShardUpdate], index: Mapping[tuple[int, str], int]
) -> tuple[NewEvents | None, Origins]:
    """The updates' events of the view's source as one, and where each run of rows came from."""
    group, time_us, id_ = [], [], []
    columns: dict[str, list[Int64s]] = {name: [] for name in view.columns}
    origins: Origins = []
    rows = 0
    for update in updates:
        for p, part in enumerate(update.parts):
            if part.source != view.source.name or len(part.id) == 0:
                continue
            origins.append((rows, update.shard, p))
            rows += len(part.id)
            group.append(_groups(update.shard, part, index))
            time_us.append(part.time_us)
            id_.append(part.id)
            for name, values in columns.items():
                values.append(part.fields[name])
    if not rows:
        return None, origins
    joined = {name: np.concatenate(values) for name, values in columns.items()}
    return NewEvents(np.concatenate(group), np.concatenate(time_us), np.concatenate(id_), joined), origins


def labels_of(view: FeatureView, updates: Sequence[ShardUpdate], index: Mapping[tuple[int, str], int]) -> Labels | None:
    if view.label is None:
        return None
    found = [
        (_groups(u.shard, p, index), p.id, p.time_us, p.known_at_us, p.fields["value"])
        for u in updates
        for p in u.parts
        if p.source == view.label.name and p.known_at_us is not None and len(p.id)
    ]
    return Labels(*(np.concatenate(c) for c in zip(*found, strict=True))) if found else None


def _groups(shard: int, part: EventColumns, index: Mapping[tuple[int, str], int]) -> Int64s:
    lookup = np.fromiter((index[shard, key] for key in part.keys), dtype=np.int64, count=len(part.keys))
    return np.asarray(lookup[part.key_index])


def origin_of(origins: Origins, row: int) -> tuple[int, int, int]:
    """Shard, part and row within the part of a row of the joined events."""
    first, shard, part = origins[bisect_right(origins, row, key=itemgetter(0)) - 1]
    return shard, part, row - first
