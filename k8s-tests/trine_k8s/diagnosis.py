"""What a failed test prints: its namespaces' pods and events, and the last logs of what it touched."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from trine_k8s.commands import run
from trine_k8s.installation import Installation
from trine_k8s.namespace import Namespace
from trine_k8s.polling import PASSING

_EVENTS, _LINES = 60, 60


@dataclass(slots=True)
class Watched:
    """The installations that are there now."""

    installations: list[Installation] = field(default_factory=list)

    @contextmanager
    def watching(self, installation: Installation) -> Iterator[None]:
        self.installations.append(installation)
        try:
            yield
        finally:
            self.installations.remove(installation)

    def forget_touched(self) -> None:
        for installation in self.installations:
            installation.touched.clear()

    def diagnoses(self) -> list[tuple[str, str]]:
        """Namespace and text of each."""
        return [(i.namespace.name, diagnosis(i.namespace, i.touched)) for i in self.installations]


def diagnosis(namespace: Namespace, touched: set[str]) -> str:
    """Never raises for what the cluster refuses: it stands in the text. `touched`: components."""
    try:
        return "\n".join(_parts(namespace, touched))
    except PASSING as error:
        return f"no diagnosis: {error}"


def _parts(namespace: Namespace, touched: set[str]) -> Iterator[str]:
    kubectl = ("kubectl", "-n", namespace.name, "get")
    yield run(*kubectl, "pods,hpa,jobs,pvc", "-o", "wide", "--show-kind")
    yield "--- events"
    yield "\n".join(run(*kubectl, "events", "--sort-by=.lastTimestamp").splitlines()[-_EVENTS:])
    for pod in namespace.core.list_namespaced_pod(namespace.name).items:
        if _component(pod) in touched or not _well(pod):
            yield from _logs(namespace, pod)


def _component(pod: Any) -> str:
    return str((pod.metadata.labels or {}).get("app.kubernetes.io/component", ""))


def _well(pod: Any) -> bool:
    states = [*(pod.status.init_container_statuses or ()), *(pod.status.container_statuses or ())]
    started = all(s.ready or (s.state.terminated and s.state.terminated.exit_code == 0) for s in states)
    return bool(states) and started and not any(s.restart_count for s in states)


def _logs(namespace: Namespace, pod: Any) -> Iterator[str]:
    for status in (*(pod.status.init_container_statuses or ()), *(pod.status.container_statuses or ())):
        for previous in (True, False) if status.restart_count else (False,):
            yield f"--- {pod.metadata.name}, {status.name}{', before its restart' if previous else ''}"
            try:
                yield namespace.logs(pod.metadata.name, status.name, _LINES, previous)
            except PASSING as error:
                yield str(error)
