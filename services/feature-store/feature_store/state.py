"""How new events and labels go into the state of many entities of one view at once. No I/O.

The result depends on the set of events alone, not on their order or on how they were cut into batches: duplicates by
id change nothing, and what is kept is counted from the entity's own newest event. So a replayed, reordered or doubled
log ends in the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from feature_store.definitions import FeatureView
from feature_store.kernel import Int64s, Labels, Points

_FILTER_BITS = 18


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

    `old` is sorted by (group, time, id); groups of all three are indices of the same entities.
    """
    none = np.empty(0, dtype=np.intp)
    time_us, id_, group = old.time_us, old.id, old.group
    columns = dict(old.columns)
    duplicates, conflicts = none, none
    if events is not None and len(events.group):
        fresh, duplicates, conflicts = _fresh(old, events)
        order = fresh[np.lexsort((events.id[fresh], events.time_us[fresh], events.group[fresh]))]
        at = _insert_at(old, events.group[order], events.time_us[order])
        group = _inserted(group, at, events.group[order])
        time_us = _inserted(time_us, at, events.time_us[order])
        id_ = _inserted(id_, at, events.id[order])
        columns = {name: _inserted(columns[name], at, events.columns[name][order]) for name in columns}
        _order_ties(group, time_us, id_, columns)
    merged_labels = _merge_labels(old.labels, labels) if view.label else None

    present = [group, merged_labels.group] if merged_labels else [group]
    groups = 1 + max((int(g.max()) for g in present if len(g)), default=-1)
    newest = np.full(groups, np.iinfo(np.int64).min, dtype=np.int64)
    if len(group):
        last = np.flatnonzero(np.concatenate((group[1:] != group[:-1], [True])))
        newest[group[last]] = time_us[last] - view.retention_us
    keep = time_us > newest[group]
    if not keep.all():
        group, time_us, id_ = group[keep], time_us[keep], id_[keep]
        columns = {name: values[keep] for name, values in columns.items()}
    if merged_labels is not None and len(merged_labels.group):
        keep = merged_labels.time_us > newest[merged_labels.group]
        if not keep.all():
            merged_labels = _label_rows(merged_labels, np.flatnonzero(keep))
    return Merged(Points(group, time_us, id_, columns, merged_labels), duplicates, conflicts)


def _fresh(old: Points, events: NewEvents) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """Rows of `events` to add (first of each id in an entity), duplicates, conflicts."""
    n = len(events.id)
    # First among the new ones themselves, in log order.
    by = np.lexsort((np.arange(n), events.id, events.group))
    again = np.zeros(n, dtype=bool)
    same = (events.group[by][1:] == events.group[by][:-1]) & (events.id[by][1:] == events.id[by][:-1])
    again[by[1:][same]] = True
    conflict = np.zeros(n, dtype=bool)
    if same.any():
        # Compare each repeated row with the first row of its run.
        run_start = np.concatenate(([True], ~same))
        first = by[np.maximum.accumulate(np.where(run_start, np.arange(n), 0))]
        differs = _differ(events.time_us, events.columns, by, events.time_us, events.columns, first)
        conflict[by[differs]] = True
    # Then against what is there. A bitmap of the new ids leaves few old rows to look at.
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
