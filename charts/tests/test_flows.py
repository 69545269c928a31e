"""Connections that have to be possible, and those that must not be, judged on the rendered NetworkPolicies."""

from __future__ import annotations

import itertools

import pytest

from charts.tests.flows import Endpoint, allowed
from charts.tests.rendered import Chart

SERVICES = ("gateway", "torchserve", "worker", "archiver", "feature-store")
OURS = (*SERVICES, "redis", "kafka", "prometheus", "topics", "test", "rebuild", "batch", "batch-executor")
PORTS = (50051, 50052, 7070, 7071, 8080, 8081, 8082, 8090, 6379, 9092, 9093, 9090, 7078, 7079, 4040)

DNS = Endpoint({"k8s-app": "kube-dns"}, "kube-system")
API_SERVER = Endpoint(address="172.18.0.2")
KEDA = Endpoint({"app": "keda-operator"}, "keda")
ELSEWHERE = Endpoint({"app": "shop"}, "shops")
NEIGHBOUR = Endpoint({"app": "shop"}, "here")
INTERNET = Endpoint(address="203.0.113.7")


def pod(component: str, instance: str = "trine") -> Endpoint:
    labels = {"app.kubernetes.io/name": "trine", "app.kubernetes.io/instance": instance}
    return Endpoint({**labels, "app.kubernetes.io/component": component}, "here")


#: Every arrow between pods of one installation, as DESIGN draws them, with Prometheus's and Spark's.
ARROWS = {
    *((caller, "redis", 6379) for caller in ("gateway", "torchserve", "worker", "feature-store")),
    *((caller, "redis", 6379) for caller in ("batch", "batch-executor", "rebuild")),
    *((caller, "kafka", 9092) for caller in ("gateway", "worker", "archiver", "feature-store", "topics", "rebuild")),
    ("gateway", "torchserve", 7070),
    # The operator's `trine score`, and helm test.
    ("feature-store", "gateway", 50051),
    ("test", "gateway", 50051),
    ("prometheus", "gateway", 8080),
    ("prometheus", "torchserve", 8090),
    ("prometheus", "feature-store", 8081),
    ("prometheus", "worker", 8082),
    ("prometheus", "archiver", 8082),
    ("batch-executor", "batch", 7078),
    ("batch-executor", "batch", 7079),
    ("batch", "batch-executor", 7079),
    ("batch-executor", "batch-executor", 7079),
}  # fmt: skip


def test_pods_of_one_installation_reach_what_is_drawn_and_nothing_else() -> None:
    policies = Chart().all("NetworkPolicy")
    every = itertools.product(OURS, OURS, PORTS)
    found = {(a, b, port) for a, b, port in every if allowed(policies, pod(a), pod(b), port)}
    assert found == ARROWS


def test_nobody_outside_reaches_anything_but_the_gateway() -> None:
    policies = Chart().all("NetworkPolicy")
    for outsider in (
        ELSEWHERE,
        NEIGHBOUR,
        INTERNET,
        KEDA,
        DNS,
        pod("gateway", "another"),
        pod("prometheus", "another"),
    ):
        found = {(one, port) for one in OURS for port in PORTS if allowed(policies, outsider, pod(one), port)}
        assert found == {("gateway", 50051), ("gateway", 8080)}, outsider


def test_nothing_goes_out_but_names_and_what_spark_asks() -> None:
    policies = Chart().all("NetworkPolicy")
    asking = {
        one for one in OURS if allowed(policies, pod(one), DNS, 53, "UDP") and allowed(policies, pod(one), DNS, 53)
    }
    assert asking == set(OURS) - {"redis", "kafka"}
    for target in (API_SERVER, INTERNET):
        found = {
            (one, port) for one in OURS for port in (80, 443, 6443, 8443) if allowed(policies, pod(one), target, port)
        }
        assert found == {("batch", 443), ("batch", 6443)}
    assert not any(allowed(policies, pod(one), ELSEWHERE, port) for one in OURS if one != "batch" for port in PORTS)
    narrowed = Chart({"networkPolicy": {"apiServer": [{"ipBlock": {"cidr": "172.18.0.2/32"}}]}}).all("NetworkPolicy")
    assert allowed(narrowed, pod("batch"), API_SERVER, 6443)
    assert not allowed(narrowed, pod("batch"), INTERNET, 443)


def test_torchserves_management_is_for_nobody() -> None:
    for files in ((), ("production",), ("kind",)):
        policies = Chart(files=files).all("NetworkPolicy")
        callers = [pod(one) for one in OURS] + [ELSEWHERE, NEIGHBOUR, INTERNET, KEDA]
        for port in (8080, 8081, 7071):
            assert [one for one in callers if allowed(policies, one, pod("torchserve"), port)] == []


def test_keda_reaches_kafka_where_it_scales() -> None:
    assert not allowed(Chart().all("NetworkPolicy"), KEDA, pod("kafka"), 9092)
    policies = Chart(files=("kind",)).all("NetworkPolicy")
    assert allowed(policies, KEDA, pod("kafka"), 9092)
    assert not allowed(policies, KEDA, pod("redis"), 6379)
    assert not allowed(policies, ELSEWHERE, pod("kafka"), 9092)


def test_with_servers_of_the_users_own() -> None:
    policies = Chart(files=("production",)).all("NetworkPolicy")
    redis = {one for one in OURS if allowed(policies, pod(one), INTERNET, 6380)}
    assert redis == {caller for caller, called, _ in ARROWS if called == "redis"}
    kafka = {one for one in OURS if allowed(policies, pod(one), INTERNET, 9093)}
    assert kafka == {caller for caller, called, _ in ARROWS if called == "kafka"}
    warehouse = {one for one in OURS if allowed(policies, pod(one), INTERNET, 443)}
    assert warehouse == {"archiver", "batch", "batch-executor", "rebuild"}
    shops, monitoring = Endpoint({}, "shops"), Endpoint({}, "monitoring")
    assert allowed(policies, shops, pod("gateway"), 50051)
    assert not allowed(policies, NEIGHBOUR, pod("gateway"), 50051)
    assert {(c, p) for c in OURS for p in PORTS if allowed(policies, monitoring, pod(c), p)} == {
        ("gateway", 8080), ("torchserve", 8090), ("feature-store", 8081), ("worker", 8082), ("archiver", 8082),
    }  # fmt: skip


def test_a_driver_alone_asks_nobody() -> None:
    policies = Chart(files=("kind",)).all("NetworkPolicy")
    assert not allowed(policies, pod("batch"), API_SERVER, 6443)


def test_without_policies_everything_is_open() -> None:
    assert Chart(files=("small",)).all("NetworkPolicy") == []


@pytest.mark.parametrize(("address", "may"), [("10.1.2.3", True), ("10.9.2.3", False), ("192.168.0.1", False)])
def test_the_evaluator_knows_blocks_of_addresses(address: str, may: bool) -> None:
    policy = {
        "metadata": {"name": "p"},
        "spec": {
            "podSelector": {"matchLabels": {"a": "b"}},
            "policyTypes": ["Ingress"],
            "ingress": [
                {
                    "from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.9.0.0/16"]}}],
                    "ports": [{"port": 80, "endPort": 90}],
                }
            ],
        },
    }  # fmt: skip
    target = Endpoint({"a": "b"}, "here")
    assert allowed([policy], Endpoint(address=address), target, 85) is may
    assert not allowed([policy], Endpoint(address=address), target, 91)
    assert allowed([policy], target, Endpoint(address=address), 1), "what no policy selects is open"
