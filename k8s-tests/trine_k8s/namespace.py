"""A namespace of a test run: made with the restricted Pod Security label, looked into, and gone afterwards."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from kubernetes import client
from kubernetes.client import ApiException

from trine_k8s.commands import run, run_bytes
from trine_k8s.polling import eventually

_MARK = "trine-test-run"
#: A run that was killed may have left one; no run takes so long.
_ABANDONED = timedelta(hours=3)


@dataclass(frozen=True, slots=True)
class Namespace:
    """Objects of the Kubernetes client are Any: it has no types."""

    name: str

    @property
    def core(self) -> Any:
        return client.CoreV1Api()

    @property
    def apps(self) -> Any:
        return client.AppsV1Api()

    @property
    def batch(self) -> Any:
        return client.BatchV1Api()

    def pods(self, selector: str = "") -> list[Any]:
        """Those that are not on their way out, by name."""
        found = self.core.list_namespaced_pod(self.name, label_selector=selector).items
        return sorted((p for p in found if p.metadata.deletion_timestamp is None), key=lambda p: str(p.metadata.name))

    def exec(
        self, pod: str, *command: str, container: str = "", stdin: bytes | None = None, timeout_s: float = 120
    ) -> str:
        """What a command in a pod says. Raises CommandFailed."""
        return self.exec_bytes(pod, *command, container=container, stdin=stdin, timeout_s=timeout_s).decode()

    def exec_bytes(
        self, pod: str, *command: str, container: str = "", stdin: bytes | None = None, timeout_s: float = 120
    ) -> bytes:
        named = ("-c", container) if container else ()
        streams = ("-i",) if stdin is not None else ()
        return run_bytes(
            "kubectl", "-n", self.name, "exec", *streams, pod, *named, "--", *command, stdin=stdin, timeout_s=timeout_s
        )

    def logs(self, pod: str, container: str, lines: int, previous: bool = False) -> str:
        return str(
            self.core.read_namespaced_pod_log(pod, self.name, container=container, tail_lines=lines, previous=previous)
        )

    def delete_pod(self, name: str, grace_s: int | None = None) -> None:
        """`grace_s` 0: killed at once, without being asked to stop."""
        options = client.V1DeleteOptions(grace_period_seconds=grace_s)
        self.core.delete_namespaced_pod(name, self.name, body=options)


@contextmanager
def new_namespace() -> Iterator[Namespace]:
    """Deleted on the way out, with all that is in it; so are those that killed runs left."""
    core = client.CoreV1Api()
    for left in core.list_namespace(label_selector=_MARK).items:
        if datetime.now(UTC) - left.metadata.creation_timestamp > _ABANDONED:
            core.delete_namespace(left.metadata.name)
    name = f"trine-test-{secrets.token_hex(3)}"
    labels = {
        _MARK: "",
        "pod-security.kubernetes.io/enforce": "restricted",
        "pod-security.kubernetes.io/warn": "restricted",
    }
    core.create_namespace({"metadata": {"name": name, "labels": labels}})
    try:
        eventually("the namespace's service account", lambda: _has_account(name), 60)
        yield Namespace(name)
    finally:
        core.delete_namespace(name)
        eventually(f"namespace {name} gone", lambda: _gone(name), 300, 2)


def _has_account(name: str) -> bool:
    return any(a.metadata.name == "default" for a in client.CoreV1Api().list_namespaced_service_account(name).items)


def _gone(name: str) -> bool:
    try:
        client.CoreV1Api().read_namespace(name)
    except ApiException as error:
        if error.status == 404:
            return True
        raise
    return False


def objects(namespace: str) -> set[str]:
    """ "kind/name" of everything that is in a namespace, but for events and what every namespace has."""
    kinds = run("kubectl", "api-resources", "--namespaced", "--verbs=list", "-o", "name").split()
    asked = ",".join(k for k in kinds if not k.startswith("events") and not k.endswith("metrics.k8s.io"))
    found = run("kubectl", "-n", namespace, "get", asked, "--ignore-not-found", "-o", "name", timeout_s=300).split()
    return set(found) - {"configmap/kube-root-ca.crt", "serviceaccount/default"}
