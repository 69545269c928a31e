"""Zero lag: a request sees every event before it, also the one of a moment ago on another process, with no worker."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from tests.conftest import NewGateways
from tests.gateway_scene import DECISIONS, START_US, Gateway, Topic, new_id, transaction, wait_for
from trine.events.v1.events_pb2 import DecisionRecord


def count(gateway: Gateway, id_: str, at_us: int, customer: str) -> int:
    response = gateway.score(transaction(id_, customer=customer, at_us=at_us))
    return round(response.features["customer_count_1d"])


def test_each_transaction_counts_all_before_it_on_any_process(new_gateways: NewGateways, state: str) -> None:
    gateways = new_gateways(3, redis_url=state)
    ids = [new_id() for _ in range(50)]
    found = [count(gateways[k % 3], id_, START_US + k, "sequential") for k, id_ in enumerate(ids)]
    assert found == list(range(1, 51))

    again = [
        gateways[(k + 1) % 3].score(transaction(id_, customer="sequential", at_us=START_US + k))
        for k, id_ in enumerate(ids)
    ]
    assert all(response.repeated_request for response in again)
    assert [round(response.features["customer_count_1d"]) for response in again] == found
    assert count(gateways[0], new_id(), START_US + 50, "sequential") == 51, "the retries counted nothing twice"


def test_concurrent_transactions_of_one_card_come_one_after_the_other(
    new_gateways: NewGateways, state: str, kafka_bootstrap: str
) -> None:
    gateways = new_gateways(3, redis_url=state)
    topic = Topic.now(kafka_bootstrap, DECISIONS)
    sent = dict.fromkeys((new_id() for _ in range(50)), START_US)
    with ThreadPoolExecutor(50) as pool:
        calls = {
            id_: pool.submit(count, gateways[k % 3], id_, at_us, "concurrent")
            for k, (id_, at_us) in enumerate(sent.items())
        }
        found = {id_: call.result() for id_, call in calls.items()}
    assert count(gateways[0], new_id(), START_US + 50, "concurrent") == 51

    decisions: dict[str, DecisionRecord] = {}
    wait_for("all decisions in Kafka", lambda: decisions.update(
        {d.decision_id: d for d in topic.decisions() if d.decision_id in sent}) or len(decisions) == 50)  # fmt: skip
    seen = {id_: {i for v in d.inputs if v.view == "customer" for i in v.tail_ids} for id_, d in decisions.items()}
    # Whoever came k-th to Redis saw k events: its own and the k - 1 before it. A permutation, whatever the gateway.
    assert sorted(map(len, seen.values())) == list(range(1, 51))
    assert sorted(found.values()) == list(range(1, 51)), "at one time, what had come counts, whatever its id"
    assert all(number == len(seen[id_]) for id_, number in found.items())
