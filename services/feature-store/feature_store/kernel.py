"""The window kernel: aggregates over `(t - W - delay, t - delay]` of event time, for many entities at once.

One vectorised function over sorted arrays serves gateway, worker, offline computation, Spark and replay. Everything
it adds is an int64, so the order of evaluation cannot change a result: agreement between modes is equality.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from feature_store.definitions import Count, FeatureView, Mean, Share, Sum

Int64s = NDArray[np.int64]
LAST_ID = np.iinfo(np.int64).max
"""Own id of a query that is no event: it sees every event up to its time."""

_ROOM = 1 << 62
_FEW_PAIRS = 1 << 11
_MANY_POINTS = 1 << 10
_FILTER_BITS = 16


@dataclass(frozen=True, slots=True)
class Labels:
    """What became known about events: int64[m] each, `value` 0 or 1; any order."""

    group: Int64s
    id: Int64s
    time_us: Int64s
    known_at_us: Int64s
    value: Int64s


@dataclass(frozen=True, slots=True)
class Points:
    """Events of many entities: int64[n] each, sorted by (group, time_us, id); `group` is 0 to groups - 1."""

    group: Int64s
    time_us: Int64s
    id: Int64s
    columns: Mapping[str, Int64s] = field(default_factory=dict)
    labels: Labels | None = None


@dataclass(frozen=True, slots=True)
class Queries:
    """Feature rows wanted: int64[q] each. `id`: the row's own event, which with its elders is seen; or LAST_ID."""

    group: Int64s
    time_us: Int64s
    id: Int64s


@dataclass(frozen=True, slots=True)
class WindowSums:
    """Per query and window, int64[q, windows]: events, sums by field, events with a true label."""

    count: Int64s
    sums: Mapping[str, Int64s]
    true: Int64s | None


class _Order:
    """Positions in arrays sorted by (group, time): how many rows come before a (group, time)."""

    def __init__(self, group: Int64s, time_us: Int64s, groups: int) -> None:
        self._times: Int64s | None = None
        self._alone = groups == 1
        self.key: Int64s = time_us
        if self._alone or len(time_us) == 0:
            return
        self._first = int(time_us.min())
        self._span = int(time_us.max()) - self._first + 2
        rank = time_us - self._first
        if groups * self._span >= _ROOM:  # too wide for one number: use the rank among the distinct times
            self._times = np.unique(time_us)
            self._span = len(self._times) + 1
            rank = np.searchsorted(self._times, time_us)
        self.key = group * self._span + rank

    def upto(self, group: Int64s, time_us: Int64s) -> Int64s:
        """Rows of earlier groups, and of this group with a time at or before `time_us`; shape as of both together."""
        if self._alone or len(self.key) == 0:
            return np.searchsorted(self.key, time_us, side="right").astype(np.int64, copy=False)
        if self._times is None:
            rank = np.minimum(np.maximum(time_us - (self._first - 1), 0), self._span - 1)
        else:
            rank = np.searchsorted(self._times, time_us, side="right")
        return np.searchsorted(self.key, group * self._span + rank, side="left").astype(np.int64, copy=False)


def window_sums(points: Points, queries: Queries, windows_us: Sequence[int], delay_us: int) -> WindowSums:
    """The windows' sums for every query.

    With `delay_us` zero, events at the query's own time count only up to the query's own id.
    """
    groups = 1 + max(int(points.group[-1]) if len(points.group) else 0, _last(queries.group))
    order = _Order(points.group, points.time_us, groups)
    # Column 0 is the windows' common end, the others where each begins.
    back = np.array([delay_us, *(delay_us + w for w in windows_us)], dtype=np.int64)
    at = order.upto(queries.group[:, None], queries.time_us[:, None] - back)
    if delay_us == 0:
        at[:, 0] = _without_younger_ties(order, points, queries, at[:, 0])
        # The own-id cut can fall below the window's start only where there is nothing to count.
        np.minimum(at, at[:, :1], out=at)
    sums = {}
    for name, values in points.columns.items():
        before = _prefix_sums(values)[at]
        sums[name] = before[:, :1] - before[:, 1:]
    true = None
    if points.labels is not None:
        true = _true_labels(points, points.labels, queries, windows_us, delay_us, groups)
    return WindowSums(at[:, :1] - at[:, 1:], sums, true)


def view_features(view: FeatureView, sums: WindowSums) -> NDArray[np.float64]:
    """The view's features float64[q, features], in the view's order; ratios are int64 / int64, 0 for empty windows."""
    out = np.zeros((sums.count.shape[0], len(view.features)), dtype=np.float64)
    at = 0
    for w in range(len(view.windows)):
        count = sums.count[:, w]
        for a in view.aggregations:
            if isinstance(a, Count):
                out[:, at] = count
            elif isinstance(a, Sum):
                out[:, at] = sums.sums[a.field][:, w]
            elif isinstance(a, Mean):
                np.divide(sums.sums[a.field][:, w], count, out=out[:, at], where=count > 0)
            elif isinstance(a, Share):
                assert sums.true is not None
                np.divide(sums.true[:, w], count, out=out[:, at], where=count > 0)
            at += 1
    return out


def _last(group: Int64s) -> int:
    return int(group.max()) if len(group) else 0


def _prefix_sums(values: Int64s) -> Int64s:
    """Sums of the first 0, 1, ... n values, int64[n + 1]. May wrap: differences are right where they fit."""
    before = np.empty(len(values) + 1, dtype=np.int64)
    before[0] = 0
    np.cumsum(values, out=before[1:])
    return before


def _without_younger_ties(order: _Order, points: Points, queries: Queries, hi: Int64s) -> Int64s:
    """`hi` less the events at exactly the query's time whose id is above the query's own."""
    if len(points.time_us) == 0:
        return hi
    at = np.maximum(hi - 1, 0)
    younger = (points.id[at] > queries.id) & (points.time_us[at] == queries.time_us)
    if not younger.any():
        return hi
    open_ = np.flatnonzero(younger & (points.group[at] == queries.group) & (hi > 0))
    own, high = queries.id[open_], hi[open_]
    low = order.upto(queries.group[open_], queries.time_us[open_] - 1)
    # The events of one entity and time are in order of their ids: halve each query's stretch of them.
    while (low < high).any():
        middle = (low + high) // 2
        elder = points.id[np.minimum(middle, len(points.id) - 1)] <= own
        unsettled = low < high
        low = np.where(unsettled & elder, middle + 1, low)
        high = np.where(unsettled & ~elder, middle, high)
    hi = hi.copy()
    hi[open_] = low
    return hi


def _true_labels(
    points: Points, labels: Labels, queries: Queries, windows_us: Sequence[int], delay_us: int, groups: int
) -> Int64s:
    """Events in the window whose latest label known at the query's time is true; int64[q, windows].

    Each change of a label adds its difference from when it is both known and inside the window until the event leaves
    the window; so the number at t is (changes begun by t) - (changes ended by t), two prefix sums.
    """
    true = np.zeros((len(queries.group), len(windows_us)), dtype=np.int64)
    if len(labels.group) == 0 or len(points.group) == 0:
        return true
    group, time_us, known, change = _label_changes(points, labels)
    if len(group) == 0:
        return true
    entered = time_us + delay_us
    if len(group) * len(queries.group) <= _FEW_PAIRS:  # so few that looking at every pair is less work than sorting
        at = queries.time_us[:, None]
        begun_by = (queries.group[:, None] == group) & (np.maximum(known, entered) <= at)
        for w, width in enumerate(windows_us):
            true[:, w] = (begun_by & (entered + width > at)) @ change
        return true
    begun = _sum_upto(group, np.maximum(known, entered), change, queries, groups)
    for w, width in enumerate(windows_us):
        ended = _sum_upto(group, np.maximum(known, entered + width), change, queries, groups)
        true[:, w] = begun - ended
    return true


def _sum_upto(group: Int64s, time_us: Int64s, value: Int64s, queries: Queries, groups: int) -> Int64s:
    """Per query the sum of its group's values with a time at or before the query's; int64[q]."""
    by = np.lexsort((time_us, group))
    group, time_us = group[by], time_us[by]
    before = _prefix_sums(value[by])
    first = np.searchsorted(group, queries.group, side="left")
    order = _Order(group, time_us, groups)
    return np.asarray(before[order.upto(queries.group, queries.time_us)] - before[first])


def _label_changes(points: Points, labels: Labels) -> tuple[Int64s, Int64s, Int64s, Int64s]:
    """Changes of the labels of events that are in `points`: group, the event's time, known at, difference."""
    ids = np.unique(labels.id)
    rows = np.arange(len(points.id))
    if len(rows) > _MANY_POINTS:  # few events have labels: a bitmap of the labelled ids leaves few rows to look up
        table = np.zeros(1 << _FILTER_BITS, dtype=bool)
        table[ids & ((1 << _FILTER_BITS) - 1)] = True
        rows = np.flatnonzero(table[points.id & ((1 << _FILTER_BITS) - 1)])
    rank = np.minimum(np.searchsorted(ids, points.id[rows]), len(ids) - 1)
    found = ids[rank] == points.id[rows]
    labelled, rank = rows[found], rank[found]
    event_key = points.group[labelled] * len(ids) + rank
    by = np.argsort(event_key, kind="stable")
    event_key, event_time = event_key[by], points.time_us[labelled][by]

    label_key = labels.group * len(ids) + np.searchsorted(ids, labels.id)
    by = np.lexsort((labels.value, labels.known_at_us, label_key))
    label_key, known, value = label_key[by], labels.known_at_us[by], labels.value[by]
    change = value.copy()
    same = label_key[1:] == label_key[:-1]
    change[1:][same] -= value[:-1][same]

    at = np.minimum(np.searchsorted(event_key, label_key), max(len(event_key) - 1, 0))
    found = (event_key[at] == label_key) & (change != 0) if len(event_key) else np.zeros(len(at), dtype=bool)
    at = at[found]
    return label_key[found] // len(ids), event_time[at], known[found], change[found]
