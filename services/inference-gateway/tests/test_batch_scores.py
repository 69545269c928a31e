"""Answers without the model: batch score and rules together, from memory, whatever happens to Redis and to runs."""

from __future__ import annotations

import time

import numpy as np
import pytest
import redis
from batch_scorer.job import Output
from batch_scorer.registry import Registry
from batch_scorer.runs import Run, current_key
from batch_scorer.testing import publish_toy_run
from model_release import Release
from model_release.policy import BatchRisks, FallbackRules
from model_release.testing import toy_batch_policy, write_toy_release
from tests.gateway_scene import DECISIONS, Gateway, NewGateway, Topic, build_state, transaction, wait_for
from trine.events.v1 import events_pb2 as events
from trine.scoring.v1 import scoring_pb2 as scoring
from trine_cli.local.fixtures import PrivateRedis
from trine_cli.local.redis_server import RedisServer

from models.fraud.features import PLAN

OUTPUTS = (Output("risk"), Output("transactions", "int32"), Output("level", "string"))
RISKS = {"customer:c-1": 0.25, "customer:c-2": 0.001, "terminal:t-1": 0.125}
DAY_US = 86_400_000_000


@pytest.fixture(scope="module")
def batch_release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    folder = tmp_path_factory.mktemp("batch-releases")
    return write_toy_release(folder, PLAN, seed=12, batch=toy_batch_policy("customer", "terminal"))


@pytest.fixture
def server(private_redis: PrivateRedis) -> RedisServer:
    server = private_redis()
    build_state(server.url)
    return server


@pytest.fixture
def gateway(new_gateway: NewGateway, server: RedisServer, batch_release: Release) -> Gateway:
    return new_gateway(
        redis_url=server.url, releases=batch_release.path.parent, release=batch_release.id,
        batch_scores_refresh_s=0.05, batch_scores_max_rows=1_000,
    )  # fmt: skip


def publish(client: redis.Redis, cutoff_us: int, risks: dict[str, float], extra: int = 500) -> Run:
    """A run of many blocks; `extra` customers that nobody asks for."""
    all_risks = {f"customer:x{i}": 0.01 for i in range(extra)} | risks
    rows: dict[str, dict[str, object]] = {
        key: {"risk": risk, "transactions": 3, "level": "approve"} for key, risk in all_risks.items()
    }
    return publish_toy_run(client, "card-risk", cutoff_us, rows, OUTPUTS)


def now_us() -> int:
    return time.time_ns() // 1_000


def expected(release: Release, amount: int, customer: float | None, terminal: float | None) -> tuple[float, float]:
    """(batch score, score) as the policy says."""
    policy = release.manifest.policy
    assert policy.batch is not None
    batch = BatchRisks(policy.batch).score([customer, terminal])
    assert batch is not None
    vector = np.full(len(release.features), np.nan, dtype=np.float32)
    vector[0] = amount
    return batch, FallbackRules(policy, release.features).score(vector, None, batch).score


def ask(gateway: Gateway, customer: str = "c-1", amount: int = 100) -> scoring.ScoreTransactionResponse:
    return gateway.score(transaction(customer=customer, terminal="t-1", amount=amount))


def loaded(gateway: Gateway, run: Run) -> None:
    wait_for(f"{run.run} in use", lambda: ask(gateway).batch_run == run.run)


def record_of(log: Topic, id_: str) -> events.DecisionRecord:
    found: list[events.DecisionRecord] = []

    def there() -> bool:
        found[:] = [d for d in log.decisions() if d.decision_id == id_]
        return bool(found)

    wait_for(f"the record of {id_}", there)
    return found[0]


def test_batch_score_and_rules_together_with_the_run_that_they_are_from(
    gateway: Gateway, server: RedisServer, batch_release: Release, kafka_bootstrap: str
) -> None:
    found = ask(gateway)
    assert (found.source, found.batch_run) == (scoring.SCORE_SOURCE_RULES, "")
    assert gateway.metric("batch_score_rows") == 0
    with server.connect() as client:
        run = publish(client, now_us() - 3_600_000_000, RISKS)
        loaded(gateway, run)
        log = Topic.now(kafka_bootstrap, DECISIONS)
        for customer, amount, risk in (("c-1", 100, 0.25), ("c-2", 30_000, np.float32(0.001)), ("c-3", 100, None)):
            batch, score = expected(batch_release, amount, None if risk is None else float(risk), 0.125)
            found = ask(gateway, customer, amount)
            assert (found.source, found.batch_run, found.batch_stale) == (
                scoring.SCORE_SOURCE_BATCH_SCORE,
                run.run,
                False,
            )
            assert (found.score, list(found.rules)) == (score, ["large"] if amount > 22_000 else [])
            assert found.fallback_reason
            record = record_of(log, found.transaction_id)
            assert (record.batch_score, record.batch_run, record.score) == (batch, run.run, score)
        # Neither of them is in the run: the rules alone.
        found = gateway.score(transaction(customer="c-9", terminal="t-9"))
        assert (found.source, found.batch_run, found.score) == (scoring.SCORE_SOURCE_RULES, "", 0.0078125)
        assert 3_600 <= gateway.metric("batch_score_age_seconds") < 3_700
        assert (gateway.metric("batch_score_rows"), gateway.metric("batch_score_bytes")) == (503, 503 * 12)

        other = publish(client, now_us(), RISKS | {"customer:c-1": 0.5})
        loaded(gateway, other)
        assert ask(gateway).score == expected(batch_release, 100, 0.5, 0.125)[1]
        Registry(client).roll_back("card-risk", "", 3_600)
        loaded(gateway, run)


def test_without_redis_and_with_runs_that_cannot_be_used_the_run_in_memory_goes_on(
    gateway: Gateway, server: RedisServer
) -> None:
    with server.connect() as client:
        old = publish(client, now_us() - 3 * DAY_US, RISKS)
        loaded(gateway, old)
        found = ask(gateway)
        assert found.batch_stale
        assert gateway.metric("batch_score_stale_state") == 1

        publish(client, now_us(), RISKS, extra=1_001)
        wait_for("refused as too large", lambda: gateway.metric("batch_score_loads_total", outcome="too_large") > 0)
        assert ask(gateway).batch_run == old.run

        sound = publish(client, now_us(), RISKS)
        loaded(gateway, sound)
        lost = sound.now(run="card-risk-20180725t000000-0123abcd")
        client.set(current_key("card-risk"), lost.to_json())
        wait_for("refused as damaged", lambda: gateway.metric("batch_score_loads_total", outcome="damaged") > 0)
        assert ask(gateway).batch_run == sound.run
    server.stop()
    wait_for("Redis is missed", lambda: gateway.metric("batch_score_loads_total", outcome="unavailable") > 0)
    found = ask(gateway)
    assert (found.source, found.batch_run) == (scoring.SCORE_SOURCE_BATCH_SCORE, sound.run)
    assert found.fallback_reason == "features_down"
    server.start()
    build_state(server.url)
    with server.connect() as client:
        new = publish(client, now_us(), RISKS)
    loaded(gateway, new)


def test_a_release_that_does_not_combine_them_answers_by_rules(new_gateway: NewGateway, server: RedisServer) -> None:
    gateway = new_gateway(redis_url=server.url, batch_scores_refresh_s=0.05)
    with server.connect() as client:
        publish(client, now_us(), RISKS)
    assert ask(gateway).source == scoring.SCORE_SOURCE_RULES
