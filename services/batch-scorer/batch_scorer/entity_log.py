"""The past of every entity of a view as one sorted store, and for each decision the part of it that was seen then.

A row carries the offset at which it was absorbed: a state that stood at offset O held the rows below O. So what a
decision saw is rows of its entity with `offset < O`, and those of its tail, wherever in the log they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from feature_store.definitions import FeatureView
from feature_store.history import EntityKeys
from feature_store.kernel import LAST_ID, Int64s, Labels, Points, Queries, view_features, window_sums
from numpy.typing import NDArray

BASE = -1
"""Offset of rows that were in the history a state was rebuilt from: below every offset."""
NEVER = np.int64(1) << 62
"""Offset of events that no state absorbed (too late, too far ahead): they can be seen in a tail only."""
_PAIRS = 4_000_000


@dataclass(frozen=True, slots=True, eq=False)
class Past:
    """Events of one origin, int64[n] each. `offset`: where they were absorbed, or BASE, or NEVER."""

    keys: EntityKeys
    time_us: Int64s
    id: Int64s
    columns: Mapping[str, Int64s]
    offset: Int64s


@dataclass(frozen=True, slots=True, eq=False)
class PastLabels:
    """Labels of one origin, int64[n] each; id and time are those of the labelled event."""

    keys: EntityKeys
    time_us: Int64s
    id: Int64s
    known_at_us: Int64s
    value: Int64s
    offset: Int64s


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """What q decisions saw of one view: entity key, state's offset, tail. int64[q]; `time_us` and `id` are the own
    event's. `tail_of`, `tail_id`: int64[t], which decision each tail entry belongs to."""

    keys: Sequence[str]
    time_us: Int64s
    id: Int64s
    offset: Int64s
    tail_of: Int64s
    tail_id: Int64s


@dataclass(frozen=True, slots=True, eq=False)
class ViewReplay:
    """`values` float64[q, features of the view]; `known` bool[q]: the entity had a past; `missing`: decision → ids of
    its tail that the archive does not have."""

    values: NDArray[np.float64]
    known: NDArray[np.bool_]
    missing: dict[int, list[int]]


class EntityLog:
    """All events and labels of one view, in the order of (entity, time, id), each event once: the first absorbed."""

    def __init__(
        self,
        view: FeatureView,
        pasts: Sequence[Past],
        labels: Sequence[PastLabels] = (),
        others: Sequence[tuple[EntityKeys, Int64s]] = (),
    ) -> None:
        """`others`: keys and offsets of rows that are of no use to this view; an entity with any has a state all the
        same."""
        self._view = view
        self._codes: dict[str, int] = {}
        code = np.concatenate([self._code(p.keys) for p in pasts])
        time_us, id_, offset = (np.concatenate([getattr(p, n) for p in pasts]) for n in ("time_us", "id", "offset"))
        columns = {name: np.concatenate([p.columns[name] for p in pasts]) for name in view.columns}
        label_code = np.concatenate([self._code(p.keys) for p in labels]) if labels else np.empty(0, np.int64)

        self._ids = np.unique(id_)
        entry = code * max(len(self._ids), 1) + np.searchsorted(self._ids, id_)
        by = np.lexsort((offset, entry))
        first = by[np.flatnonzero(np.diff(entry[by], prepend=-1))]
        kept = first[np.lexsort((id_[first], time_us[first], code[first]))]

        self._code_of_row, self._time, self._id = code[kept], time_us[kept], id_[kept]
        self._offset, self._columns = offset[kept], {name: values[kept] for name, values in columns.items()}
        self._times = np.unique(self._time)
        self._position = self._code_of_row * (len(self._times) + 1) + np.searchsorted(self._times, self._time)
        self._by_entry = np.argsort(entry[kept])
        self._entries = entry[kept][self._by_entry]
        self._lowest_from_here = _lowest_offset_from(self._code_of_row, self._offset)

        by = np.argsort(label_code, kind="stable")
        self._label_code = label_code[by]
        self._labels = {
            name: np.concatenate([getattr(p, name) for p in labels])[by] if labels else np.empty(0, np.int64)
            for name in ("id", "time_us", "known_at_us", "value", "offset")
        }

        other_code = [self._code(keys) for keys, _ in others]
        self._first_written = np.full(len(self._codes), NEVER)
        touched = np.concatenate([code, label_code, *other_code])
        offsets = np.concatenate([offset, *(p.offset for p in labels), *(o for _, o in others)])
        np.minimum.at(self._first_written, touched, offsets)

    def replay(self, seen: Seen) -> ViewReplay:
        """The view's features for every decision, from what it saw alone."""
        view, q = self._view, len(seen.keys)
        code = np.fromiter((self._codes.get(k, -1) for k in seen.keys), dtype=np.int64, count=q)
        end = seen.time_us - view.delay_us
        lo = self._upto(code, end - max(view.windows_us))
        hi = self._upto(code, end)
        tail_row = self._rows_of(code[seen.tail_of], seen.tail_id)
        missing: dict[int, list[int]] = {}
        for t in np.flatnonzero(tail_row < 0).tolist():
            missing.setdefault(int(seen.tail_of[t]), []).append(int(seen.tail_id[t]))

        # A state's retention counts from its newest event. It cuts into a window only where that is ahead of the
        # decision by more than the lateness; then all of the entity's later rows are looked at to find it.
        ahead, last = self._upto(code, seen.time_us + view.lateness_us), self._key_ends(code)
        hi = np.where(self._absorbed(ahead, last, seen.offset), last, hi)

        values = np.zeros((q, len(view.features)), dtype=np.float64)
        for some in _chunks(hi - lo):
            tail = np.flatnonzero((seen.tail_of >= some.start) & (seen.tail_of < some.stop) & (tail_row >= 0))
            points = self._points(code[some], lo[some], hi[some], seen.offset[some],
                                  seen.tail_of[tail] - some.start, tail_row[tail])  # fmt: skip
            n = some.stop - some.start
            queries = Queries(np.arange(n), seen.time_us[some], np.full(n, LAST_ID))
            values[some] = view_features(view, window_sums(points, queries, view.windows_us, view.delay_us))

        known = np.bincount(seen.tail_of, minlength=q) > 1
        there = code >= 0
        known[there] |= self._first_written[code[there]] < seen.offset[there]
        return ViewReplay(values, known, missing)

    def _points(
        self, code: Int64s, lo: Int64s, hi: Int64s, offset: Int64s, tail_of: Int64s, tail_row: Int64s
    ) -> Points:
        """What each decision saw of rows lo to hi - 1, group = the decision's index."""
        group, row = _expanded(lo, hi)
        seen = self._offset[row] < offset[group]
        newest = np.full(len(lo), np.iinfo(np.int64).min, dtype=np.int64)
        np.maximum.at(newest, group[seen], self._time[row[seen]] - self._view.retention_us)
        seen &= self._time[row] > newest[group]
        inside = (tail_row >= lo[tail_of]) & (tail_row < hi[tail_of])
        starts = np.cumsum(hi - lo) - (hi - lo)
        seen[starts[tail_of[inside]] + tail_row[inside] - lo[tail_of[inside]]] = True
        group, row = group[seen], row[seen]
        return Points(
            group=group,
            time_us=self._time[row],
            id=self._id[row],
            columns={name: values[row] for name, values in self._columns.items()},
            labels=self._labels_seen(code, offset) if self._view.label is not None else None,
        )

    def _labels_seen(self, code: Int64s, offset: Int64s) -> Labels:
        lo = np.searchsorted(self._label_code, code, side="left")
        hi = np.searchsorted(self._label_code, code, side="right")
        group, row = _expanded(lo.astype(np.int64), hi.astype(np.int64))
        seen = self._labels["offset"][row] < offset[group]
        group, row = group[seen], row[seen]
        return Labels(group, *(self._labels[name][row] for name in ("id", "time_us", "known_at_us", "value")))

    def _code(self, keys: EntityKeys) -> Int64s:
        codes = self._codes
        lookup = np.fromiter((codes.setdefault(k, len(codes)) for k in keys.keys), np.int64, len(keys.keys))
        return np.asarray(lookup[keys.code])

    def _upto(self, code: Int64s, time_us: Int64s) -> Int64s:
        """First row after those of the entity at or before a time; of an unknown entity: 0."""
        rank = np.searchsorted(self._times, time_us, side="right")
        return self._search(code * (len(self._times) + 1) + rank)

    def _key_ends(self, code: Int64s) -> Int64s:
        # Not above the first position of the next entity, and never reached by a row of this one.
        return self._search(code * (len(self._times) + 1) + len(self._times))

    def _search(self, position: Int64s) -> Int64s:
        return np.searchsorted(self._position, position, side="left").astype(np.int64, copy=False)

    def _absorbed(self, first: Int64s, last: Int64s, offset: Int64s) -> NDArray[np.bool_]:
        """Whether any of the entity's rows `first` to `last` - 1 lies below the offset; `last` is the entity's end."""
        some = first < last
        out = np.zeros(len(first), dtype=np.bool_)
        out[some] = self._lowest_from_here[first[some]] < offset[some]
        return out

    def _rows_of(self, code: Int64s, id_: Int64s) -> Int64s:
        """The row of each (entity, event id); -1 where there is none."""
        if len(self._entries) == 0 or len(id_) == 0:
            return np.full(len(id_), -1, dtype=np.int64)
        rank = np.minimum(np.searchsorted(self._ids, id_), len(self._ids) - 1)
        entry = code * len(self._ids) + rank
        at = np.minimum(np.searchsorted(self._entries, entry), len(self._entries) - 1)
        found = (self._entries[at] == entry) & (self._ids[rank] == id_) & (code >= 0)
        return np.where(found, self._by_entry[at], -1)


def _expanded(lo: Int64s, hi: Int64s) -> tuple[Int64s, Int64s]:
    """(index, row) for every row lo[i] to hi[i] - 1."""
    counts = np.maximum(hi - lo, 0)
    index = np.repeat(np.arange(len(lo)), counts)
    return index, np.arange(len(index)) + np.repeat(lo - (np.cumsum(counts) - counts), counts)


def _chunks(counts: Int64s) -> list[slice]:
    """Runs of decisions that expand to a bounded number of rows each."""
    total = np.cumsum(counts)
    cuts = np.flatnonzero(np.diff(total // _PAIRS, prepend=0)).tolist()
    edges = sorted({0, *cuts, len(counts)})
    return [slice(a, b) for a, b in pairwise(edges)]


def _lowest_offset_from(code: Int64s, offset: Int64s) -> Int64s:
    """Per row (sorted by `code`) the lowest offset among the rows of its entity from there on."""
    if len(code) == 0:
        return offset
    # Ranks are small, so that an entity's number above them keeps entities apart in one running minimum.
    distinct, rank = np.unique(offset, return_inverse=True)
    running = np.minimum.accumulate((code * len(distinct) + rank)[::-1])[::-1]
    return np.asarray(distinct[running - code * len(distinct)])
