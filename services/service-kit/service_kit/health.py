"""The health of one process: live, ready with the reasons it is not, degraded with reasons.

Parts of a service report themselves by name: `health.block("redis", "cannot connect")` takes the process out of
rotation until `health.unblock("redis")`; `health.degrade("model", "TorchServe does not answer")` keeps it in and is
seen in /readyz, in the metric and in alerts. Callable from any thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from service_kit.logs import get_logger
from service_kit.metrics import Metrics

log = get_logger(__name__)


@dataclass(frozen=True)
class HealthReport:
    """A moment's health; every mapping is part → reason."""

    live: bool
    ready: bool
    not_ready: dict[str, str] = field(default_factory=dict)
    degraded: dict[str, str] = field(default_factory=dict)
    dead: dict[str, str] = field(default_factory=dict)


class Health:
    """Starts live and not ready (reason "start"); `run` unblocks that once the service has started."""

    def __init__(self, metrics: Metrics | None = None) -> None:
        self._lock = threading.RLock()
        self._blocked = {"start": "starting"}
        self._degraded: dict[str, str] = {}
        self._dead: dict[str, str] = {}
        self._listeners: list[Callable[[HealthReport], None]] = []
        self._ready_gauge = self._degraded_gauge = None
        if metrics is not None:
            self._ready_gauge = metrics.gauge("ready_state", "1 where the process takes requests", across="min")
            self._degraded_gauge = metrics.gauge(
                "degraded_state", "1 where a part works with less than it should", ["part"], across="max"
            )
            self._ready_gauge.set(0)

    def block(self, part: str, reason: str) -> None:
        """Not ready because of `part`, until `unblock(part)`."""
        self._set(self._blocked, part, reason, "not ready")

    def unblock(self, part: str) -> None:
        self._unset(self._blocked, part, "ready again")

    def degrade(self, part: str, reason: str) -> None:
        """Ready, but `part` works with less than it should, until `restore(part)`."""
        self._set(self._degraded, part, reason, "degraded")

    def restore(self, part: str) -> None:
        self._unset(self._degraded, part, "restored")

    def die(self, part: str, reason: str) -> None:
        """Only a restart of the process helps; liveness fails from now on."""
        self._set(self._dead, part, reason, "dead")

    @property
    def ready(self) -> bool:
        return not self._blocked and not self._dead

    def report(self) -> HealthReport:
        with self._lock:
            return HealthReport(not self._dead, self.ready, dict(self._blocked), dict(self._degraded), dict(self._dead))

    def listen(self, listener: Callable[[HealthReport], None]) -> Callable[[], None]:
        """Call `listener` after every change, in the thread that made it. Returns what ends that."""
        with self._lock:
            self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def _set(self, reasons: dict[str, str], part: str, reason: str, what: str) -> None:
        with self._lock:
            if reasons.get(part) == reason:
                return
            reasons[part] = reason
            log.warning(what, part=part, reason=reason)
            self._changed(reasons, part)

    def _unset(self, reasons: dict[str, str], part: str, what: str) -> None:
        with self._lock:
            if reasons.pop(part, None) is not None:
                log.info(what, part=part)
                self._changed(reasons, part)

    def _changed(self, reasons: dict[str, str], part: str) -> None:
        if self._ready_gauge is not None:
            self._ready_gauge.set(self.ready)
        if self._degraded_gauge is not None and reasons is self._degraded:
            self._degraded_gauge.labels(part).set(part in reasons)
        report = self.report()
        for listener in list(self._listeners):
            listener(report)
