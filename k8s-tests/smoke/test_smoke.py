"""The whole path on a cluster, in order: each test stands on the one before."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from model_release import Release
from trine.predictions.v1 import predictions_pb2, predictions_pb2_grpc
from trine.scoring.v1 import scoring_pb2, scoring_pb2_grpc
from trine_k8s import sample_data
from trine_k8s.counting import await_counted, await_replayed, fill_warehouse
from trine_k8s.cron_jobs import executor_pods, run_by_hand, state_of
from trine_k8s.installation import Installation, NewInstallation
from trine_k8s.namespace import Namespace, objects
from trine_k8s.outside import address
from trine_k8s.polling import eventually

GATEWAY_PORT = 50051
CUSTOMERS = 3
RUN = f"s{secrets.token_hex(4)}"
PARTS = ("gateway", "torchserve", "worker", "archiver", "feature-store", "redis", "kafka")

pytestmark = [pytest.mark.timeout(1_500, func_only=True), pytest.mark.in_order]


@pytest.fixture(scope="module")
def trine(new_installation: NewInstallation) -> Installation:
    return new_installation()


@pytest.fixture(scope="module")
def answered() -> dict[str, str]:
    """Customer by transaction that got an answer."""
    return {}


@pytest.fixture
def gateway(trine: Installation) -> Iterator[grpc.Channel]:
    with (
        address(trine, "gateway", GATEWAY_PORT) as target,
        grpc.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)]) as channel,
    ):
        yield channel


def score(channel: grpc.Channel, answered: dict[str, str]) -> scoring_pb2.ScoreTransactionResponse:
    """A new transaction of the next customer, noted in `answered`."""
    number = len(answered)
    transaction = scoring_pb2.Transaction(
        transaction_id=f"{RUN}-{number}",
        customer_id=f"{RUN}-c{number % CUSTOMERS}",
        terminal_id=f"{RUN}-t",
        amount_minor=1_000 + number,
        currency="EUR",
    )
    transaction.event_time.FromMicroseconds(time.time_ns() // 1_000)
    request = scoring_pb2.ScoreTransactionRequest(transaction=transaction)
    stub = scoring_pb2_grpc.ScoringServiceStub(channel)
    answer = stub.ScoreTransaction(request, timeout=30, wait_for_ready=True, metadata=(("trine-explain", "1"),))
    answered[answer.transaction_id] = transaction.customer_id
    return answer


def test_installs_and_everything_becomes_ready(trine: Installation) -> None:
    trine.install()
    for component in PARTS:
        trine.await_ready(component)


def test_scores_from_outside_the_cluster_by_the_model(
    trine: Installation, gateway: grpc.Channel, releases: tuple[Path, list[Release]], answered: dict[str, str]
) -> None:
    trine.selector("torchserve")

    def by_the_model() -> scoring_pb2.ScoreTransactionResponse | None:
        answer = score(gateway, answered)
        return answer if answer.source == scoring_pb2.SCORE_SOURCE_MODEL else None

    answer = eventually("an answer by the model", by_the_model, 180, 1)
    assert answer.release == releases[1][0].id
    assert 0.0 <= answer.score <= 1.0


def test_a_request_sees_those_before_it_and_the_state_follows(
    trine: Installation, gateway: grpc.Channel, answered: dict[str, str]
) -> None:
    trine.selector("worker")

    def sees_all() -> bool:
        """Where a busy machine lets features be read at all, they are the truth."""
        answer = score(gateway, answered)
        before = Counter(answered.values())[answered[answer.transaction_id]]
        assert answer.features.get("customer_count_1d", before) == before
        return len(answered) >= 4 * CUSTOMERS and bool(answer.features)

    eventually("features in an answer", sees_all, 120, 0)
    await_counted(trine, Counter(answered.values()))


def test_every_decision_replays_equal_from_the_warehouse(
    trine: Installation, releases: tuple[Path, list[Release]], answered: dict[str, str], tmp_path: Path
) -> None:
    await_replayed(trine, answered, RUN, releases[0], tmp_path)


def test_a_cron_job_run_by_hand_makes_executors_and_publishes(
    trine: Installation, gateway: grpc.Channel, tmp_path: Path
) -> None:
    trine.selector("batch")
    dataset = sample_data.dataset(tmp_path / "data")
    fill_warehouse(trine, dataset)
    job = run_by_hand(trine, "card-risk")
    executors: set[str] = set()

    def done() -> str | None:
        executors.update(executor_pods(trine, job))
        return state_of(trine, job)

    assert eventually(f"job {job} over", done, 900) == "succeeded"
    assert executors, "no executor pod was seen"
    eventually("executors gone with their driver", lambda: not executor_pods(trine, job), 120)

    key = f"customer:{sample_data.busiest_customer(dataset)}"
    asked = predictions_pb2.GetPredictionRequest(job="card-risk", key=key)
    stub = predictions_pb2_grpc.PredictionServiceStub(gateway)
    found = eventually("the prediction, through the gateway", lambda: stub.GetPrediction(asked, timeout=20), 60)
    assert found.run.job == "card-risk"
    assert 0.0 < found.prediction.values["risk"].number < 1.0


def test_helm_test_scores_a_transaction(trine: Installation) -> None:
    assert "Succeeded" in trine.test()


def test_uninstall_leaves_nothing_but_volume_claims(trine: Installation, namespace: Namespace) -> None:
    trine.uninstall()

    def left() -> set[str]:
        # What is the test's own, and what follows a Service or claim by itself.
        own = ("service/outside-", "endpoints/outside-", "endpointslice.discovery.k8s.io/outside-")
        return {o for o in objects(namespace.name) if not o.startswith((*own, "persistentvolumeclaim/"))}

    eventually("nothing but volume claims left", lambda: not left() or None, 180, 3)
