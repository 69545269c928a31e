"""What a stack's components are doing, in a few words each, from their /readyz and /metrics pages."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import httpx
from prometheus_client.parser import text_string_to_metric_families

from trine_cli.local import loopback
from trine_cli.local.stack_services import ARCHIVE, GATEWAY, WORKER

Series = Mapping[tuple[str, tuple[tuple[str, str], ...]], float]
"""A metrics page: (sample name, sorted labels) to value."""


@dataclass(frozen=True)
class Sample:
    """One look at a component: when (monotonic seconds), its metrics, and why it is not at its best."""

    at_s: float
    series: Series = field(default_factory=dict)
    troubles: tuple[str, ...] = ()


def look(url: str) -> Sample:
    """Ask /readyz and /metrics below `url`; what does not answer is a trouble and not an error."""
    try:
        health = loopback.get(f"{url}/readyz", 2).json()
        page = loopback.get(f"{url}/metrics", 2).text
    except (httpx.HTTPError, ValueError) as error:
        return Sample(time.monotonic(), troubles=(f"does not answer: {type(error).__name__}",))
    reasons = {**health.get("dead", {}), **health.get("not_ready", {}), **health.get("degraded", {})}
    return Sample(time.monotonic(), series_of(page), tuple(f"{part}: {reason}" for part, reason in reasons.items()))


def series_of(page: str) -> Series:
    """A Prometheus text page as series."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }


def words(component: str, before: Sample, now: Sample) -> str:
    """Rates between two looks, e.g. `312/s · model 99% · p99 18 ms`; empty where there is nothing to tell."""
    seconds = now.at_s - before.at_s
    if seconds <= 0 or not now.series or not before.series:
        return ""
    parts: list[str] = []
    if component == GATEWAY:
        by_source = _grown("trine_gateway_decisions_total", "source", before, now)
        total = sum(by_source.values())
        parts.append(f"{total / seconds:,.0f}/s")
        parts += [f"{source} {count / total:.0%}" for source, count in by_source.items() if count]
        if (p99 := quantile("trine_gateway_decision_seconds", 0.99, before, now)) is not None:
            parts.append(f"p99 ≤ {p99 * 1000:,.3g} ms")
        if spooled := _total("trine_gateway_spool_bytes", now):
            parts.append(f"spool {spooled / 1e6:,.1f} MB")
    if component == WORKER:
        outcomes = _grown("trine_worker_events_total", "outcome", before, now)
        parts.append(f"{outcomes.get('absorbed', 0.0) / seconds:,.0f} events/s")
        parts.append(f"lag {_total('trine_worker_shard_lag_events', now):,.0f} events")
        if letters := _total("trine_worker_dead_letters_total", now):
            parts.append(f"{letters:,.0f} dead letters")
    if component == ARCHIVE:
        archived = _grown("trine_worker_events_total", "outcome", before, now).get("archived", 0.0)
        parts.append(f"{archived / seconds:,.0f} events/s")
        parts.append(f"lag {_total('trine_worker_archive_lag_events', now):,.0f} events")
        parts.append(f"{_total('trine_worker_archive_files_total', now):,.0f} files")
    return " · ".join(parts)


def quantile(histogram: str, share: float, before: Sample, now: Sample) -> float | None:
    """Upper bound (seconds) of the bucket that holds the quantile of what was observed between two looks.

    None where nothing was observed, or where it lies above the last bucket.
    """
    grown = _grown(f"{histogram}_bucket", "le", before, now)
    bounds = sorted((float(bound), count) for bound, count in grown.items())
    if not bounds or bounds[-1][1] <= 0:
        return None
    bound = next(bound for bound, count in bounds if count >= share * bounds[-1][1])
    return None if bound == float("inf") else bound


def _grown(name: str, label: str, before: Sample, now: Sample) -> dict[str, float]:
    """Growth of a counter between two looks by one label's value; a restarted process counts from 0."""
    grown: dict[str, float] = defaultdict(float)
    for (found, labels), value in now.series.items():
        if found == name:
            earlier = before.series.get((found, labels), 0.0)
            grown[dict(labels).get(label, "")] += value - earlier if value >= earlier else value
    return dict(grown)


def _total(name: str, now: Sample) -> float:
    return sum(_values(name, now))


def _values(name: str, now: Sample) -> Iterable[float]:
    return (value for (found, _), value in now.series.items() if found == name)
