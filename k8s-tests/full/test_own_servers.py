"""The user's own Redis and Kafka in place of the chart's: TLS, an authority of the user's own, passwords in Secrets."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from trine.predictions.v1 import predictions_pb2, predictions_pb2_grpc
from trine_k8s import sample_data
from trine_k8s.counting import await_counted, fill_warehouse
from trine_k8s.cron_jobs import run_by_hand, state_of
from trine_k8s.installation import Installation, NewInstallation
from trine_k8s.load import Load
from trine_k8s.outside import address
from trine_k8s.own_servers import start_own_servers
from trine_k8s.polling import eventually

pytestmark = [pytest.mark.timeout(1_800, func_only=True), pytest.mark.in_order]


@pytest.fixture(scope="module")
def trine(new_installation: NewInstallation) -> Installation:
    return new_installation()


def test_scores_and_features_follow(trine: Installation) -> None:
    trine.values = start_own_servers(trine.namespace)
    trine.install()
    trine.await_ready("torchserve", "gateway", "worker", "archiver", "feature-store")
    with address(trine, "gateway", 50051) as target, Load(target, rate=5.0, seconds=20) as load:
        load.run_out()
    assert not load.outcome.failures, load.outcome.summary()
    assert load.outcome.share_by_model > 0.9, load.outcome.summary()
    await_counted(trine, load.outcome.customers())
    assert "Succeeded" in trine.test()


def test_a_batch_job_publishes(trine: Installation, tmp_path: Path) -> None:
    dataset = sample_data.dataset(tmp_path / "data")
    fill_warehouse(trine, dataset)
    trine.selector("batch")
    job = run_by_hand(trine, "card-risk")
    assert eventually(f"job {job} over", lambda: state_of(trine, job), 900, 2) == "succeeded"
    asked = predictions_pb2.GetPredictionRequest(
        job="card-risk", key=f"customer:{sample_data.busiest_customer(dataset)}"
    )
    with address(trine, "gateway", 50051) as target, grpc.insecure_channel(target) as channel:
        stub = predictions_pb2_grpc.PredictionServiceStub(channel)
        found = eventually("the prediction, through the gateway", lambda: stub.GetPrediction(asked, timeout=20), 60)
    assert found.run.job == "card-risk"
