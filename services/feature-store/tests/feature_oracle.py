"""What features are, by brute force: written from the definition of windows and labels, one event at a time.

Shares no code with the kernel, the state or the offline store; reads a view's declaration and nothing else of the
package. Ids are decimal texts here, so that their order is the order of numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from feature_store.definitions import Count, FeaturePlan, FeatureView, Mean, Sum
from numpy.typing import NDArray

DAY_US = 86_400_000_000


@dataclass(frozen=True)
class Event:
    id: str
    time_us: int
    keys: Mapping[str, str]
    fields: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """A label: what was said of event `id` (happened at `time_us`, perhaps never seen) at `known_at_us`."""

    id: str
    known_at_us: int
    value: bool
    time_us: int = 0


def said_of(reports: Iterable[Report], event_id: str, at_us: int) -> bool:
    """What is known of an event at a time: the latest word, and at a tie of words the worse."""
    heard = [(r.known_at_us, r.value) for r in reports if r.id == event_id and r.known_at_us <= at_us]
    return max(heard)[1] if heard else False


def view_row(
    view: FeatureView,
    events: Iterable[Event],
    reports: Iterable[Report],
    key: str,
    at_us: int,
    own_id: str | None = None,
) -> list[float]:
    """A view's features of entity `key` at a time, for event `own_id` or, without one, for everything up to then."""
    reports = list(reports)
    own = [e for e in events if e.keys[view.entity.name] == key]
    row: list[float] = []
    for window_us in view.windows_us:
        until = at_us - view.delay_us
        inside = []
        for e in own:
            if not until - window_us < e.time_us <= until:
                continue
            younger = e.time_us == at_us and own_id is not None and int(e.id) > int(own_id)
            if view.delay_us == 0 and younger:
                continue
            inside.append(e)
        for a in view.aggregations:
            if isinstance(a, Count):
                row.append(float(len(inside)))
            elif isinstance(a, Sum):
                row.append(float(sum(e.fields[a.field] for e in inside)))
            elif isinstance(a, Mean):
                row.append(float(sum(e.fields[a.field] for e in inside)) / len(inside) if inside else 0.0)
            else:
                bad = sum(said_of(reports, e.id, at_us) for e in inside)
                row.append(bad / len(inside) if inside else 0.0)
    return row


def request_row(plan: FeaturePlan, event: Event) -> list[float]:
    """Features of the event itself, by the calendar."""
    when = np.datetime64(event.time_us, "us").astype(object)
    row = []
    for f in plan.request_features:
        if f.kind == "field":
            row.append(float(event.fields[f.field]))
        elif f.kind == "weekend":
            row.append(float(when.strftime("%A") in ("Saturday", "Sunday")))
        else:
            row.append(float(when.hour in range(7)))
    return row


def vector(plan: FeaturePlan, events: Iterable[Event], reports: Iterable[Report], event: Event) -> NDArray[np.float32]:
    """The live feature vector, float32[features], of an event when `events` (itself among them) have arrived."""
    events, reports = list(events), list(reports)
    row = request_row(plan, event)
    for view in plan.views:
        row += view_row(view, events, reports, event.keys[view.entity.name], event.time_us)
    return np.array(row, dtype=np.float64).astype(np.float32)
