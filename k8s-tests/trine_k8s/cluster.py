"""The cluster that the tests use: the one that KUBECONFIG leads to, or a kind cluster made for them and deleted."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from kubernetes import client, config

from trine_k8s.commands import CommandFailed, run

_OWN = "trine-tests"


@dataclass(frozen=True, slots=True)
class Cluster:
    """`kind`: its name among kind's clusters; empty where it is of another make. `nodes`: those that take pods."""

    kind: str
    nodes: tuple[str, ...]
    metrics: bool
    keda: bool
    enforces_policies: bool


@contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Connects kubectl, helm and the Python client. Raises CommandFailed where a cluster cannot be made."""
    if _answers():
        yield _connected()
        return
    image = os.environ.get("KIND_NODE_IMAGE")
    os.environ["KUBECONFIG"] = str(folder / "kubeconfig")
    try:
        named = ("--image", image) if image else ()
        run("kind", "create", "cluster", "--name", _OWN, *named, "--wait", "180s", timeout_s=600)
        yield _connected()
    finally:
        run("kind", "delete", "cluster", "--name", _OWN, timeout_s=180)


def _answers() -> bool:
    try:
        run("kubectl", "--request-timeout=15s", "get", "--raw", "/readyz", timeout_s=30)
    except CommandFailed:
        return False
    return True


def _connected() -> Cluster:
    config.load_kube_config()
    context = run("kubectl", "config", "current-context").strip()
    groups = {group.name for group in client.ApisApi().get_api_versions().groups}
    nodes = tuple(
        node.metadata.name
        for node in client.CoreV1Api().list_node().items
        if not any(taint.effect in ("NoSchedule", "NoExecute") for taint in node.spec.taints or ())
    )
    pods = client.CoreV1Api().list_namespaced_pod("kube-system").items
    network = any(pod.metadata.name.startswith(("calico", "cilium", "antrea", "weave", "kube-router")) for pod in pods)
    return Cluster(
        kind=context.removeprefix("kind-") if context.startswith("kind-") else "",
        nodes=nodes,
        metrics="metrics.k8s.io" in groups,
        keda="keda.sh" in groups,
        enforces_policies=network,
    )


def need(condition: bool, reason: str) -> None:
    """Skips the test, with the reason, where the cluster has not what it needs."""
    if not condition:
        pytest.skip(reason)
