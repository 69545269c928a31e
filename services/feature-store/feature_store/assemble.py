"""From decoded state, tail and request to feature values. No I/O; gateway and replay of decisions share it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from feature_store.definitions import FeaturePlan, FeatureView
from feature_store.kernel import Int64s, Points, Queries, view_features, window_sums
from feature_store.state import NewEvents, union

_DAY_US = 86_400_000_000
_HOUR_US = 3_600_000_000
_EPOCH_WEEKDAY = 3  # 1970-01-01 was a Thursday; Monday is 0


def request_matrix(plan: FeaturePlan, time_us: Int64s, fields: Mapping[str, Int64s]) -> NDArray[np.float64]:
    """Features of the event itself, float64[n, request features]; `fields` has int64[n] for every declared field."""
    out = np.empty((len(time_us), len(plan.request_features)), dtype=np.float64)
    for i, feature in enumerate(plan.request_features):
        if feature.kind == "field":
            out[:, i] = fields[feature.field]
        elif feature.kind == "weekend":
            out[:, i] = (time_us // _DAY_US + _EPOCH_WEEKDAY) % 7 >= 5
        else:
            out[:, i] = time_us % _DAY_US // _HOUR_US <= 6
    return out


def view_matrix(view: FeatureView, state: Points, tail: NewEvents | None, queries: Queries) -> NDArray[np.float64]:
    """The view's features float64[q, features] over state and tail; an event in both counts once.

    However far ahead of the query an event of the tail is, it hides nothing that the query sees.
    """
    points = union(view, state, tail, None).points if tail is not None and len(tail.id) else state
    return view_features(view, window_sums(points, queries, view.windows_us, view.delay_us))
