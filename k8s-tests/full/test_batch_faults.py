"""A Spark driver that is killed changes nothing for who reads: yesterday's predictions stay, whole."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from kubernetes import client
from trine.predictions.v1 import predictions_pb2, predictions_pb2_grpc
from trine_k8s import sample_data
from trine_k8s.counting import fill_warehouse
from trine_k8s.cron_jobs import driver_pods, executor_pods, run_by_hand, state_of
from trine_k8s.installation import Installation
from trine_k8s.polling import eventually

pytestmark = pytest.mark.timeout(1_800, func_only=True)


def served_run(target: str, customer: str) -> str:
    """The run that a read through the gateway is from."""
    with grpc.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)]) as channel:
        asked = predictions_pb2.GetPredictionRequest(job="card-risk", key=f"customer:{customer}")
        found = predictions_pb2_grpc.PredictionServiceStub(channel).GetPrediction(
            asked, timeout=20, wait_for_ready=True
        )
    return str(found.run.run)


def test_a_killed_driver_leaves_yesterdays_and_the_next_run_publishes(
    trine: Installation, target: str, tmp_path: Path
) -> None:
    dataset = sample_data.dataset(tmp_path / "data")
    fill_warehouse(trine, dataset)
    customer = sample_data.busiest_customer(dataset)
    first = run_by_hand(trine, "card-risk")
    trine.selector("batch")
    assert eventually("the first run", lambda: state_of(trine, first), 600, 2) == "succeeded"
    yesterday = eventually("a published run", lambda: served_run(target, customer), 60)

    killed = run_by_hand(trine, "card-risk")
    eventually("its executors", lambda: executor_pods(trine, killed), 300, 0.2)
    for driver in driver_pods(trine, killed):
        trine.namespace.delete_pod(driver.metadata.name, grace_s=0)
    options = client.V1DeleteOptions(propagation_policy="Foreground", grace_period_seconds=0)
    trine.namespace.batch.delete_namespaced_job(killed, trine.namespace.name, body=options)
    assert served_run(target, customer) == yesterday
    eventually("executors gone with their driver", lambda: not trine.namespace.pods("spark-role=executor"), 180)
    assert served_run(target, customer) == yesterday

    again = run_by_hand(trine, "card-risk")
    assert eventually("the next run", lambda: state_of(trine, again), 600, 2) == "succeeded"
    assert served_run(target, customer) != yesterday
