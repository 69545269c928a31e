"""Features of past events, point-in-time correct: the same definitions and kernel as online, over a dataset folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from feature_store.assemble import request_matrix
from feature_store.dataset import load_sources
from feature_store.definitions import FeaturePlan
from feature_store.history import History, history_of, integer_features, view_points
from feature_store.kernel import LAST_ID, Queries, view_features, window_sums


def compute_features(
    plan: FeaturePlan, dataset: str | Path, from_us: int | None = None, to_us: int | None = None
) -> pa.Table:
    """One row per event with from_us <= event time < to_us, in order of (time, id).

    Columns: the event's id, time, and entity keys, then the plan's features in vector order (counts, flags and fields
    int64, ratios float64). Labels count as known at each event's own time. Raises feature_store.dataset.DatasetError.
    """
    reach = max((max(v.windows_us) + v.delay_us for v in plan.views), default=0)
    first_us = None if from_us is None else from_us - reach
    events, labels = load_sources(dataset, plan, first_us, to_us, known_before_us=to_us)
    history = history_of(plan, events, labels)
    rows = np.arange(len(history.time_us)) if from_us is None else np.flatnonzero(history.time_us >= from_us)
    matrix = feature_matrix(plan, history, rows)
    whole = integer_features(plan)
    keys = [plan.source.id, plan.source.time.removesuffix("_us"), *(e.key for e in plan.entities)]
    columns: dict[str, pa.ChunkedArray | pa.Array] = {
        name: events.column(name).take(pa.array(rows)) if len(rows) < events.num_rows else events.column(name)
        for name in keys
    }
    for i, name in enumerate(plan.features):
        columns[name] = pa.array(matrix[:, i].astype(np.int64) if name in whole else matrix[:, i])
    return pa.table(columns)


def feature_matrix(plan: FeaturePlan, history: History, rows: np.ndarray) -> np.ndarray:
    """Features float64[len(rows), features] of some events of the history, each at its own time."""
    time_us, id_ = history.time_us[rows], history.id[rows]
    parts = [request_matrix(plan, time_us, {name: v[rows] for name, v in history.fields.items()})]
    for view in plan.views:
        points, _ = view_points(view, history)
        own = id_ if view.delay_us == 0 else np.full_like(id_, LAST_ID)
        queries = Queries(history.entities[view.entity.name].code[rows], time_us, own)
        parts.append(view_features(view, window_sums(points, queries, view.windows_us, view.delay_us)))
    return np.concatenate(parts, axis=1)
