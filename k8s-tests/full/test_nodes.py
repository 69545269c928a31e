"""A node is drained as its operator does before maintenance: pods move one after the other, nobody notices."""

from __future__ import annotations

import time

import pytest
from trine_k8s.cluster import Cluster, need
from trine_k8s.commands import run
from trine_k8s.counting import await_counted
from trine_k8s.installation import Installation
from trine_k8s.load import Load
from trine_k8s.namespace import Namespace

pytestmark = pytest.mark.timeout(1_800, func_only=True)


def test_drain_under_load(trine: Installation, target: str, rate: float, cluster: Cluster) -> None:
    need(len(cluster.nodes) > 1, "one node takes pods: they could go nowhere")
    # A volume of a node keeps its pod there, and two such gateways on one node would keep it from being drained.
    trine.upgrade({"gateway": {"spool": {"persistence": {"enabled": False}}}})
    trine.await_ready("gateway")
    gateways = [p.spec.node_name for p in trine.pods("gateway")]
    bound = [p.spec.node_name for c in ("redis", "kafka", "archiver") for p in trine.pods(c)]
    node = min(set(gateways), key=lambda name: (bound.count(name), name))
    with Load(target, rate=rate) as load:
        load.await_time(time.time() + 5)
        try:
            run(
                "kubectl", "drain", node, "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=600s",
                f"--pod-selector=app.kubernetes.io/instance={trine.name}", timeout_s=660,
            )  # fmt: skip
        finally:
            run("kubectl", "uncordon", node)
        trine.await_ready("gateway", "torchserve", "worker", "archiver", "feature-store", "redis", "kafka")
        load.await_time(time.time() + 5)
    outcome = load.outcome
    assert not outcome.failures, outcome.summary()
    assert not outcome.unanswered
    await_counted(trine, outcome.customers())


def test_the_namespace_admits_restricted_pods_only(trine: Installation) -> None:
    """And so all of the installation's are."""
    namespace: Namespace = trine.namespace
    pod = {
        "metadata": {"name": "privileged"},
        "spec": {
            "containers": [{"name": "c", "image": "debian:bookworm-slim", "securityContext": {"privileged": True}}]
        },
    }
    with pytest.raises(Exception, match="violates PodSecurity"):
        namespace.core.create_namespaced_pod(namespace.name, pod)
    label = namespace.core.read_namespace(namespace.name).metadata.labels["pod-security.kubernetes.io/enforce"]
    assert label == "restricted"
    assert len(namespace.pods(f"app.kubernetes.io/instance={trine.name}")) >= 7
