"""Prometheus metrics named `trine_<component>_<what>_<unit>`, summed over the processes of a service.

With PROMETHEUS_MULTIPROC_DIR in the environment (the supervising parent of `service_kit.processes` sets it before
its children start) each process writes to files there and any of them answers /metrics for all.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
#: Seconds, for what should take between a fraction of a millisecond and a second.
LATENCY_BUCKETS = (
    0.0005,
    0.001,
    0.002,
    0.003,
    0.005,
    0.0075,
    0.01,
    0.015,
    0.02,
    0.03,
    0.05,
    0.075,
    0.1,
    0.25,
    0.5,
    1.0,
)
_UNITS = ("total", "seconds", "bytes", "ratio", "rows", "state", "info", "events", "offsets")


class Metrics:
    """The metrics of one component. Make them once, at start; a name given twice is refused."""

    def __init__(self, component: str) -> None:
        self.component = component
        self._registry = CollectorRegistry()
        # Where several processes share a port their cpu and memory cannot be told apart on one page.
        if not _shared_directory():
            ProcessCollector(registry=self._registry)

    def counter(self, what: str, help: str, labels: Sequence[str] = ()) -> Counter:
        """A count that only grows; `what` ends in `_total`."""
        return Counter(self._name(what, "total"), help, labels, registry=self._registry)

    def gauge(
        self, what: str, help: str, labels: Sequence[str] = (), across: Literal["sum", "max", "min"] = "sum"
    ) -> Gauge:
        """A value that goes up and down; `across` says how the values of live processes become one."""
        mode: Literal["livesum", "livemax", "livemin"] = f"live{across}"  # type: ignore[assignment]
        return Gauge(self._name(what), help, labels, registry=self._registry, multiprocess_mode=mode)

    def histogram(
        self, what: str, help: str, labels: Sequence[str] = (), buckets: Sequence[float] = LATENCY_BUCKETS
    ) -> Histogram:
        """A distribution; by default of latencies in seconds."""
        return Histogram(self._name(what), help, labels, registry=self._registry, buckets=buckets)

    def exposition(self) -> bytes:
        """The page that Prometheus scrapes (content type `CONTENT_TYPE`), over all processes of the service."""
        directory = _shared_directory()
        if not directory:
            return generate_latest(self._registry)
        together = CollectorRegistry()
        MultiProcessCollector(together, path=directory)  # type: ignore[no-untyped-call]
        return generate_latest(together)

    def _name(self, what: str, *units: str) -> str:
        unit = what.rsplit("_", 1)[-1]
        if not re.fullmatch(r"[a-z][a-z0-9_]*", what) or unit not in (units or _UNITS):
            raise ValueError(f"metric {what!r} should be lower case and end in one of {units or _UNITS}")
        return f"trine_{self.component}_{what}"


def _shared_directory() -> str:
    # Read here and not in settings: prometheus_client itself decides by this variable, when it is imported.
    return os.environ.get("PROMETHEUS_MULTIPROC_DIR", "")
