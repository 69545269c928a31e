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
        self._first = int(time_us.min()) if len(time_us) else 0
        self._span = int(time_us.max()) - self._first + 2 if len(time_us) else 1
        rank = time_us - self._first
        if groups * self._span >= _ROOM:  # too wide for one number: use the rank among the distinct times
            self._times = np.unique(time_us)
            self._span = len(self._times) + 1
            rank = np.searchsorted(self._times, time_us)
        self.key: Int64s = group * self._span + rank

    def upto(self, group: Int64s, time_us: Int64s) -> Int64s:
        """Rows of earlier groups, and of this group with a time at or before `time_us`; int64[q]."""
        if self._times is None:
            rank = np.clip(time_us - self._first + 1, 0, self._span - 1)
        else:
            rank = np.searchsorted(self._times, time_us, side="right")
        return np.searchsorted(self.key, group * self._span + rank, side="left").astype(np.int64, copy=False)


def window_sums(points: Points, queries: Queries, windows_us: Sequence[int], delay_us: int) -> WindowSums:
    """The windows' sums for every query.

    With `delay_us` zero, events at the query's own time count only up to the query's own id.
    """
    groups = 1 + max(_last(points.group), _last(queries.group))
    order = _Order(points.group, points.time_us, groups)
    end = queries.time_us - delay_us
    hi = order.upto(queries.group, end)
    if delay_us == 0:
        hi = _without_younger_ties(points, queries, hi)
    lows = [order.upto(queries.group, end - w) for w in windows_us]
    # The own-id cut can fall below the window's start only where there is nothing to count.
    lo = np.minimum(np.stack(lows, axis=1), hi[:, None]) if lows else np.empty((len(hi), 0), dtype=np.int64)
    sums = {}
    for name, values in points.columns.items():
        before = np.concatenate(([0], np.cumsum(values)))
        sums[name] = before[hi][:, None] - before[lo]
    true = None
    if points.labels is not None:
        true = _true_labels(points, points.labels, queries, windows_us, delay_us, groups)
    return WindowSums(hi[:, None] - lo, sums, true)


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


def _without_younger_ties(points: Points, queries: Queries, hi: Int64s) -> Int64s:
    """`hi` less the events at exactly the query's time whose id is above the query's own."""
    if len(points.time_us) == 0:
        return hi
    # Walk back over events of the same entity and time; each step settles every query it no longer concerns.
    hi = hi.copy()
    open_ = np.flatnonzero(hi > 0)
    while len(open_):
        at = hi[open_] - 1
        younger = (
            (points.time_us[at] == queries.time_us[open_])
            & (points.group[at] == queries.group[open_])
            & (points.id[at] > queries.id[open_])
        )
        open_ = open_[younger]
        hi[open_] -= 1
        open_ = open_[hi[open_] > 0]
    return hi


def _true_labels(
    points: Points, labels: Labels, queries: Queries, windows_us: Sequence[int], delay_us: int, groups: int
) -> Int64s:
    """Events in the window whose latest label known at the query's time is true; int64[q, windows].

    Each change of a label adds its difference from when it is both known and inside the window until the event leaves
    the window; so the number at t is (changes begun by t) - (changes ended by t), two prefix sums.
    """
    true = np.zeros((len(queries.group), len(windows_us)), dtype=np.int64)
    group, time_us, known, change = _label_changes(points, labels)
    if len(group) == 0:
        return true
    begun = _sum_upto(group, np.maximum(known, time_us + delay_us), change, queries, groups)
    for w, width in enumerate(windows_us):
        ended = _sum_upto(group, np.maximum(known, time_us + delay_us + width), change, queries, groups)
        true[:, w] = begun - ended
    return true


def _sum_upto(group: Int64s, time_us: Int64s, value: Int64s, queries: Queries, groups: int) -> Int64s:
    """Per query the sum of its group's values with a time at or before the query's; int64[q]."""
    by = np.lexsort((time_us, group))
    group, time_us = group[by], time_us[by]
    before = np.concatenate(([0], np.cumsum(value[by])))
    first = np.searchsorted(group, queries.group, side="left")
    order = _Order(group, time_us, groups)
    return np.asarray(before[order.upto(queries.group, queries.time_us)] - before[first])


def _label_changes(points: Points, labels: Labels) -> tuple[Int64s, Int64s, Int64s, Int64s]:
    """Changes of the labels of events that are in `points`: group, the event's time, known at, difference."""
    ids = np.unique(labels.id)
    if len(ids) == 0 or len(points.id) == 0:
        none = np.empty(0, dtype=np.int64)
        return none, none, none, none
    rank = np.minimum(np.searchsorted(ids, points.id), len(ids) - 1)
    labelled = np.flatnonzero(ids[rank] == points.id)
    event_key = points.group[labelled] * len(ids) + rank[labelled]
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
