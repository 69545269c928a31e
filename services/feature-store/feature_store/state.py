"""How new events and labels go into the state of many entities of one view at once. No I/O.

The result depends on the set of events alone, not on their order or on how they were cut into batches: duplicates by
id change nothing, and what is kept is counted from the entity's own newest event. So a replayed, reordered or doubled
log ends in the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from feature_store.definitions import FeatureView
from feature_store.kernel import Int64s, Labels, Points

_FILTER_BITS = 18
_FEW_PAIRS = 1 << 14


@dataclass(frozen=True, slots=True)
class NewEvents:
    """Events to add, int64[n] each, in log order; `group` is the entity's index."""

    group: Int64s
    time_us: Int64s
    id: Int64s
    columns: Mapping[str, Int64s]


@dataclass(frozen=True, slots=True)
class Merged:
    """The state afterwards, and rows of the new events that were duplicates or conflicts (same id, other content)."""

    points: Points
    duplicates: NDArray[np.intp]
    conflicts: NDArray[np.intp]


def merge(view: FeatureView, old: Points, events: NewEvents | None, labels: Labels | None) -> Merged:
    """`old` with `events` and `labels` added and everything past the view's retention dropped.

    `old` is sorted by (group, time, id); groups of all three are indices of the same entities. The result is that of
    adding one event after the other, in their order.
    """
    duplicates, conflicts = [], []
    first = 0
    while True:
        added = union(view, old, events, labels)
        points, gone = _retained(view, added.points)
        early = _against_the_gone(events, added.conflicts, gone) if events is not None else None
        duplicates.append(added.duplicates + first)
        conflicts.append(added.conflicts + first)
        if events is None or early is None:
            return Merged(points, np.concatenate(duplicates), np.concatenate(conflicts))
        # What this event conflicts with may have been dropped before it came: settle all before it first.
        turn = max(early, 1)
        head = union(view, old, _event_rows(events, slice(0, turn)), labels)
        duplicates[-1], conflicts[-1] = head.duplicates + first, head.conflicts + first
        old, _ = _retained(view, head.points)
        events, labels, first = _event_rows(events, slice(turn, None)), None, first + turn


def union(view: FeatureView, old: Points, events: NewEvents | None, labels: Labels | None) -> Merged:
    """`old` with `events` and `labels` added and nothing dropped, whatever its age: what a request reads."""
    none = np.empty(0, dtype=np.intp)
    time_us, id_, group = old.time_us, old.id, old.group
    columns = dict(old.columns)
    duplicates, conflicts = none, none
    if events is not None and len(events.group):
        order, duplicates, conflicts = _fresh(old, events)
        if len(order) > 1:
            order = order[np.lexsort((events.id[order], events.time_us[order], events.group[order]))]
        if len(order):
            at = _insert_at(old, events.group[order], events.time_us[order])
            group = _inserted(group, at, events.group[order])
            time_us = _inserted(time_us, at, events.time_us[order])
            id_ = _inserted(id_, at, events.id[order])
            columns = {name: _inserted(columns[name], at, events.columns[name][order]) for name in columns}
            _order_ties(group, time_us, id_, columns)
    merged_labels = _merge_labels(old.labels, labels) if view.label else None
    return Merged(Points(group, time_us, id_, columns, merged_labels), duplicates, conflicts)


def _retained(view: FeatureView, points: Points) -> tuple[Points, tuple[Int64s, Int64s]]:
    """Without what is past the view's retention, counted from each entity's newest event; and group, id of that."""
    group, labels = points.group, points.labels
    gone = group[:0], group[:0]
    if len(group) == 0:
        return points, gone
    last = np.flatnonzero(np.concatenate((group[1:] != group[:-1], [True])))
    groups = 1 + int(group[-1])
    if labels is not None and len(labels.group):
        groups = max(groups, 1 + int(labels.group.max()))
    oldest = np.full(groups, np.iinfo(np.int64).min, dtype=np.int64)
    oldest[group[last]] = points.time_us[last] - view.retention_us
    keep = points.time_us > oldest[group]
    if not keep.all():
        gone = group[~keep], points.id[~keep]
        columns = {name: values[keep] for name, values in points.columns.items()}
        points = Points(group[keep], points.time_us[keep], points.id[keep], columns, labels)
    if labels is not None and len(labels.group):
        keep = labels.time_us > oldest[labels.group]
        if not keep.all():
            points = replace(points, labels=_label_rows(labels, np.flatnonzero(keep)))
    return points, gone


def _against_the_gone(events: NewEvents, conflicts: NDArray[np.intp], gone: tuple[Int64s, Int64s]) -> int | None:
    """The first row that conflicts with an event that the same merge drops."""
    if len(conflicts) == 0 or len(gone[0]) == 0:
        return None
    pairs = set(zip(gone[0].tolist(), gone[1].tolist(), strict=True))
    return next((r for g, i, r in _rows_of(events.group, events.id, conflicts) if (g, i) in pairs), None)


def _event_rows(events: NewEvents, rows: slice) -> NewEvents:
    columns = {name: values[rows] for name, values in events.columns.items()}
    return NewEvents(events.group[rows], events.time_us[rows], events.id[rows], columns)


def _fresh(old: Points, events: NewEvents) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """Rows of `events` to add (first of each id in an entity), duplicates, conflicts."""
    n = len(events.id)
    again = np.zeros(n, dtype=bool)
    conflict = np.zeros(n, dtype=bool)
    if n > 1:
        _mark_repeats(events, again, conflict)
    # Then against what is there.
    if len(old.id) * n <= _FEW_PAIRS:
        candidates = np.flatnonzero((old.id[:, None] == events.id).any(axis=1))
    else:  # a bitmap of the new ids leaves few old rows to look at
        mask = (1 << _FILTER_BITS) - 1
        table = np.zeros(1 << _FILTER_BITS, dtype=bool)
        table[events.id & mask] = True
        candidates = np.flatnonzero(table[old.id & mask])
        candidates = candidates[np.isin(old.id[candidates], events.id)]
    if len(candidates):
        there = {(g, i): r for g, i, r in _rows_of(old.group, old.id, candidates)}
        probe = np.flatnonzero(np.isin(events.id, old.id[candidates]))
        hits = [(r, there[g, i]) for g, i, r in _rows_of(events.group, events.id, probe) if (g, i) in there]
        if hits:
            new_rows, old_rows = (np.array(x, dtype=np.intp) for x in zip(*hits, strict=True))
            again[new_rows] = True
            conflict[new_rows] = _differ(events.time_us, events.columns, new_rows, old.time_us, old.columns, old_rows)
    return np.flatnonzero(~again), np.flatnonzero(again & ~conflict), np.flatnonzero(conflict)


def _mark_repeats(events: NewEvents, again: NDArray[np.bool_], conflict: NDArray[np.bool_]) -> None:
    """Mark rows whose id came before among the events themselves, and those of them with another content."""
    n = len(events.id)
    by = np.lexsort((np.arange(n), events.id, events.group))
    group, id_ = events.group[by], events.id[by]
    same = (group[1:] == group[:-1]) & (id_[1:] == id_[:-1])
    if not same.any():
        return
    again[by[1:][same]] = True
    # Compare each repeated row with the first row of its run.
    run_start = np.concatenate(([True], ~same))
    first = by[np.maximum.accumulate(np.where(run_start, np.arange(n), 0))]
    differs = _differ(events.time_us, events.columns, by, events.time_us, events.columns, first)
    conflict[by[differs]] = True


def _rows_of(group: Int64s, id_: Int64s, rows: NDArray[np.intp]) -> Iterator[tuple[int, int, int]]:
    return zip(group[rows].tolist(), id_[rows].tolist(), rows.tolist(), strict=True)


def _differ(
    a_time: Int64s, a: Mapping[str, Int64s], a_rows: NDArray[np.intp],
    b_time: Int64s, b: Mapping[str, Int64s], b_rows: NDArray[np.intp],
) -> NDArray[np.bool_]:  # fmt: skip
    differs: NDArray[np.bool_] = a_time[a_rows] != b_time[b_rows]
    for name in b:
        differs |= a[name][a_rows] != b[name][b_rows]
    return differs


def _insert_at(old: Points, group: Int64s, time_us: Int64s) -> Int64s:
    """Where each new row goes among the old ones: after all of the same (group, time)."""
    if len(old.time_us) == 0 or len(time_us) == 0:
        return np.zeros(len(group), dtype=np.int64)
    if old.group[0] == old.group[-1] == group[0] == group[-1]:  # one entity: its times are in order
        return np.searchsorted(old.time_us, time_us, side="right").astype(np.int64, copy=False)
    first = min(int(old.time_us.min()), int(time_us.min()))
    span = max(int(old.time_us.max()), int(time_us.max())) - first + 1
    if (int(max(old.group.max(), group.max())) + 1) * span < 1 << 62:
        key = old.group * span + (old.time_us - first)
        return np.searchsorted(key, group * span + (time_us - first), side="right").astype(np.int64, copy=False)
    times = np.unique(np.concatenate((old.time_us, time_us)))
    key = old.group * len(times) + np.searchsorted(times, old.time_us)
    wanted = group * len(times) + np.searchsorted(times, time_us)
    return np.searchsorted(key, wanted, side="right").astype(np.int64, copy=False)


def _inserted(old: Int64s, at: Int64s, new: Int64s) -> Int64s:
    if at[0] == len(old):
        return np.concatenate((old, new))
    out = np.empty(len(old) + len(new), dtype=np.int64)
    rows = at + np.arange(len(new))
    rest = np.ones(len(out), dtype=bool)
    rest[rows] = False
    out[rows] = new
    out[rest] = old
    return out


def _order_ties(group: Int64s, time_us: Int64s, id_: Int64s, columns: Mapping[str, Int64s]) -> None:
    """Put rows of equal (group, time) into the order of their ids, in place."""
    tie = (group[1:] == group[:-1]) & (time_us[1:] == time_us[:-1])
    if not (tie & (id_[1:] < id_[:-1])).any():
        return
    rows = np.flatnonzero(np.concatenate((tie, [False])) | np.concatenate(([False], tie)))
    by = rows[np.lexsort((id_[rows], time_us[rows], group[rows]))]
    id_[rows] = id_[by]
    for values in columns.values():
        values[rows] = values[by]


def _merge_labels(old: Labels | None, new: Labels | None) -> Labels:
    """The union of both as a set, sorted by (group, time, id, known, value)."""
    parts = [part for part in (old, new) if part is not None]
    both = Labels(*(np.concatenate([getattr(p, n) for p in parts]) for n in _LABEL_FIELDS))
    if new is None or len(new.group) == 0:
        return both
    by = np.lexsort((both.value, both.known_at_us, both.id, both.time_us, both.group))
    both = _label_rows(both, by)
    again = np.ones(max(len(by) - 1, 0), dtype=bool)
    for name in _LABEL_FIELDS:
        values = getattr(both, name)
        again &= values[1:] == values[:-1]
    return _label_rows(both, np.flatnonzero(np.concatenate(([True], ~again)))) if again.any() else both


_LABEL_FIELDS = ("group", "id", "time_us", "known_at_us", "value")


def _label_rows(labels: Labels, rows: NDArray[np.intp]) -> Labels:
    return Labels(*(getattr(labels, name)[rows] for name in _LABEL_FIELDS))
