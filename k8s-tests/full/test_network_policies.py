"""The flows that the design draws are open and no others: by the policies, and in fact where they are enforced."""

from __future__ import annotations

from typing import Any

import pytest
from kubernetes import client
from trine_k8s.cluster import Cluster, need
from trine_k8s.commands import CommandFailed
from trine_k8s.installation import Installation
from trine_k8s.network_policies import End, Policy, Port, allowed
from trine_k8s.polling import eventually

pytestmark = pytest.mark.timeout(600, func_only=True)

OUTSIDE = "outside"
DNS = End({"k8s-app": "kube-dns"}, "kube-system", {"kubernetes.io/metadata.name": "kube-system"})
KEDA = End({"app": "keda-operator"}, "keda", {"kubernetes.io/metadata.name": "keda"})
STRANGER = End({"app": "stranger"}, "elsewhere", {"kubernetes.io/metadata.name": "elsewhere"})
API_SERVER = End(address="172.18.0.2")

SERVING = ("gateway", "worker", "archiver", "feature-store")
ALL = (*SERVING, "torchserve", "redis", "kafka", "prometheus", "driver", "executor")

_BATCH = {"driver": "batch", "executor": "batch-executor"}

OPEN = [
    *((OUTSIDE, "gateway", port) for port in (50051, 8080)),
    ("gateway", "torchserve", 7070),
    *((source, "kafka", 9092) for source in SERVING),
    *((source, "redis", 6379) for source in ("gateway", "worker", "feature-store", "driver", "executor")),
    ("driver", "executor", 7079),
    ("executor", "driver", 7078),
    ("executor", "driver", 7079),
    ("executor", "executor", 7079),
    ("prometheus", "gateway", 8080),
    ("prometheus", "feature-store", 8081),
    *(("prometheus", target, 8082) for target in ("worker", "archiver")),
    ("prometheus", "torchserve", 8090),
]
CLOSED = [
    *((source, "torchserve", 8081) for source in (OUTSIDE, *ALL)),
    *((OUTSIDE, target, port) for target, port in (("redis", 6379), ("kafka", 9092), ("torchserve", 7070))),
    (OUTSIDE, "executor", 7079),
    (OUTSIDE, "driver", 7078),
    ("torchserve", "gateway", 50051),
    ("torchserve", "kafka", 9092),
    ("archiver", "redis", 6379),
    ("archiver", "gateway", 50051),
    ("executor", "kafka", 9092),
    ("prometheus", "redis", 6379),
    ("worker", "feature-store", 50052),
]


@pytest.fixture(scope="module")
def policies(standing: Installation) -> list[Policy]:
    api = client.NetworkingV1Api()
    found = api.list_namespaced_network_policy(standing.namespace.name).items
    assert found, "no NetworkPolicy"
    data: list[Policy] = api.api_client.sanitize_for_serialization(found)
    return data


@pytest.fixture(scope="module")
def end(standing: Installation) -> Any:
    """A component's pod, or a peer outside, as policies see it."""
    namespace = standing.namespace.name
    own = {"kubernetes.io/metadata.name": namespace}

    def of(name: str) -> End:
        if name == OUTSIDE:
            return End()
        if name in _BATCH:
            # No such pod is there now.
            labels = standing.pods("gateway")[0].metadata.labels
            return End({**labels, "app.kubernetes.io/component": _BATCH[name]}, namespace, own)
        return End(standing.pods(name)[0].metadata.labels, namespace, own)

    return of


@pytest.mark.parametrize(("source", "target", "port"), OPEN)
def test_open(policies: list[Policy], end: Any, source: str, target: str, port: int) -> None:
    assert allowed(policies, end(source), end(target), Port(port))


@pytest.mark.parametrize(("source", "target", "port"), CLOSED)
def test_closed(policies: list[Policy], end: Any, source: str, target: str, port: int) -> None:
    assert not allowed(policies, end(source), end(target), Port(port))


@pytest.mark.parametrize("source", [c for c in ALL if c not in ("redis", "kafka")])
def test_names_can_be_looked_up(policies: list[Policy], end: Any, source: str) -> None:
    for protocol in ("UDP", "TCP"):
        assert allowed(policies, end(source), DNS, Port(53, protocol))


def test_the_api_server_is_for_the_driver_only(policies: list[Policy], end: Any) -> None:
    reach = {source for source in ALL if allowed(policies, end(source), API_SERVER, Port(6443))}
    assert reach == {"driver"}


def test_keda_asks_kafka_and_strangers_do_not(policies: list[Policy], end: Any) -> None:
    assert allowed(policies, KEDA, end("kafka"), Port(9092))
    for target, port in (("kafka", 9092), ("redis", 6379), ("torchserve", 7070), ("torchserve", 8081)):
        assert not allowed(policies, STRANGER, end(target), Port(port))


def test_enforced(trine: Installation, cluster: Cluster) -> None:
    need(cluster.enforces_policies, "this cluster's network stores NetworkPolicies and does not enforce them")
    targets = {c: trine.pods(c)[0].status.pod_ip for c in ("torchserve", "redis", "kafka", "gateway")}

    def connects(source: str, target: str, port: int) -> bool:
        code = f"import socket; socket.create_connection(('{targets[target]}', {port}), timeout=5)"
        try:
            trine.namespace.exec(trine.pods(source)[0].metadata.name, "python", "-c", code)
        except CommandFailed:
            return False
        return True

    eventually("gateway to TorchServe", lambda: connects("gateway", "torchserve", 7070), 60)
    assert connects("gateway", "redis", 6379)
    assert not connects("gateway", "torchserve", 8081)
    assert not connects("archiver", "redis", 6379)
    assert not connects("feature-store", "gateway", 50051)
