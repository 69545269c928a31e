"""Replicas follow load: gateways by CPU (HPA), workers by what Kafka holds for them (KEDA); up soon, down later."""

from __future__ import annotations

import secrets
from collections import Counter

import pytest
from trine_k8s.cluster import Cluster, need
from trine_k8s.commands import run
from trine_k8s.counting import await_counted
from trine_k8s.installation import Installation
from trine_k8s.load import Load
from trine_k8s.polling import eventually

pytestmark = pytest.mark.timeout(1_800, func_only=True)

HPA = {
    "mode": "hpa", "minReplicas": 1, "maxReplicas": 3, "targetCPUUtilizationPercentage": 40,
    "scaleDownStabilizationSeconds": 20, "scaleDownPercent": 100,
}  # fmt: skip
KEDA = {
    "mode": "keda", "minReplicas": 1, "maxReplicas": 3, "lagThreshold": 2_000, "pollingIntervalSeconds": 5,
    "scaleDownStabilizationSeconds": 20,
}  # fmt: skip
_PAUSED = "autoscaling.keda.sh/paused-replicas"
_BURST = 400_000
#: A whole core has absorbed the burst before the HPA, which looks every 15 s, has seen it once.
SLOW = {"resources": {"limits": {"cpu": "250m", "memory": "2Gi"}}}
#: As charts/trine/values.yaml has them.
SHARDS = 64
#: Produces events of customers that no test counts straight into the topic, faster than a worker absorbs them.
BURST = """
import os, time
from confluent_kafka import Producer
from feature_store.sharding import shard_of
from trine.events.v1.events_pb2 import Transaction
prefix, count, shards, bootstrap = {prefix!r}, {count}, {shards}, os.environ["TRINE_FEATURES_KAFKA_BOOTSTRAP"]
producer = Producer({{"bootstrap.servers": bootstrap, "queue.buffering.max.messages": 2_000_000, "linger.ms": 50}})
now = time.time_ns() // 1_000
for n in range(count):
    customer = f"{{prefix}}-c{{n % 1_000}}"
    event = Transaction(transaction_id=f"{{prefix}}-{{n}}", event_time_us=now + n, customer_id=customer,
                        terminal_id=f"{{prefix}}-t{{n % 500}}", amount=1_000, currency="EUR")
    producer.produce("trine.transactions", event.SerializeToString(), customer.encode(),
                     partition=shard_of(customer, shards))
    if n % 10_000 == 0:
        producer.poll(0)
assert producer.flush(120) == 0
print(count)
"""


def test_hpa_raises_gateways_under_load_and_lowers_them(trine: Installation, target: str, cluster: Cluster) -> None:
    need(cluster.metrics, "no metrics API in this cluster: an HPA knows no CPU")
    trine.upgrade({"gateway": {"autoscaling": HPA}})
    eventually("one gateway at rest", lambda: len(trine.pods("gateway")) == 1, 600, 2)
    with Load(target, in_flight=32) as load:
        eventually("more gateways under load", lambda: len(trine.pods("gateway")) > 1, 300, 2)
        trine.await_ready("gateway")
    assert not load.outcome.unanswered, load.outcome.summary()
    eventually("one gateway at rest", lambda: len(trine.pods("gateway")) == 1, 600, 2)
    await_counted(trine, load.outcome.customers())


def test_keda_raises_workers_on_lag_and_lowers_them(trine: Installation, cluster: Cluster) -> None:
    need(cluster.keda, "no KEDA in this cluster")
    trine.upgrade({"worker": {"features": {"autoscaling": KEDA, **SLOW}}})
    eventually("one worker at rest", lambda: len(trine.pods("worker")) == 1, 300, 2)
    # Nobody absorbs for a moment, so that there is something to catch up with.
    kubectl = ("kubectl", "-n", trine.namespace.name, "annotate", "scaledobject", f"{trine.name}-worker")
    run(*kubectl, f"{_PAUSED}=0", "--overwrite")
    eventually("no worker", lambda: not trine.pods("worker"), 300, 2)
    prefix = f"k{secrets.token_hex(4)}"
    burst = BURST.format(prefix=prefix, count=_BURST, shards=SHARDS).encode()
    said = trine.namespace.exec(trine.pods("feature-store")[0].metadata.name, "python", "-", stdin=burst, timeout_s=300)
    assert said.strip() == str(_BURST)
    run(*kubectl, f"{_PAUSED}-")
    eventually("more workers on lag", lambda: len(trine.pods("worker")) > 1, 300, 0.5)
    await_counted(trine, Counter(f"{prefix}-c{n % 1_000}" for n in range(_BURST)), 600)
    eventually("one worker at rest", lambda: len(trine.pods("worker")) == 1, 600, 2)
