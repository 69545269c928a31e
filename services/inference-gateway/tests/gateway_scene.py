"""What the gateway's tests are made of: requests, gateways as processes, and what topics hold afterwards."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import grpc
import httpx
import pytest
import redis
from confluent_kafka import Consumer, KafkaException, TopicPartition
from feature_store.definitions import FeaturePlan
from feature_store.updates import StateWriter
from model_release import Release
from prometheus_client.parser import text_string_to_metric_families
from trine.events.v1 import events_pb2 as events
from trine.scoring.v1 import scoring_pb2 as scoring
from trine.scoring.v1 import scoring_pb2_grpc as scoring_grpc
from trine_cli.local import loopback
from trine_cli.local.fixtures import SHARDS as SHARDS
from trine_cli.local.ports import HOST, free_ports
from trine_cli.local.service import Service
from trine_cli.local.torchserve import TorchServe

from models.fraud.features import PLAN

START_US = 1_532_500_000_000_000
TRANSACTIONS, DECISIONS = "trine.transactions", "trine.decisions"
EXPLAIN = (("trine-explain", "1"),)

_ids = itertools.count(time.time_ns() // 1_000)


def new_id() -> str:
    """A transaction id that no test had before, also not in an earlier run on the same servers."""
    return str(next(_ids))


def transaction(
    id_: str | None = None,
    *,
    customer: str = "c-1",
    terminal: str = "t-1",
    amount: int = 1_234,
    at_us: int = START_US,
    currency: str = "EUR",
) -> scoring.ScoreTransactionRequest:
    """A valid request unless told otherwise."""
    message = scoring.Transaction(
        transaction_id=new_id() if id_ is None else id_,
        customer_id=customer,
        terminal_id=terminal,
        amount_minor=amount,
        currency=currency,
    )
    message.event_time.FromMicroseconds(at_us)
    return scoring.ScoreTransactionRequest(transaction=message)


def build_state(url: str, plan: FeaturePlan = PLAN) -> None:
    """All shards owned and empty, as after a worker's first start."""
    with redis.Redis.from_url(url) as client:
        writer = StateWriter(client, plan, "test")
        for entity in plan.entities:
            writer.claim(entity.name, plan.topic_of(entity.name), "topic-of-test", range(SHARDS))
            writer.heartbeat(entity.name, dict.fromkeys(range(SHARDS), time.time_ns() // 1_000))


def wait_for(what: str, check: Callable[[], object], timeout_s: float = 30.0) -> None:
    """Poll until `check()` is true, at most half of the time: what is waited for needs the cores too."""
    end = time.monotonic() + timeout_s
    while True:
        began = time.monotonic()
        if check():
            return
        now = time.monotonic()
        assert now < end, f"not within {timeout_s} s: {what}"
        time.sleep(max(0.02, now - began))


def refused(call: Callable[[], object]) -> grpc.RpcError | None:
    """The error that a call ends in; None where it ends well."""
    try:
        call()
    except grpc.RpcError as error:
        return error
    return None


class Gateway(Service):
    """A gateway as a child process, with clients for it."""

    def __init__(self, folder: Path, settings: Mapping[str, object], processes: int = 1) -> None:
        self.grpc_port, rest_port = free_ports(2)
        self.spool = folder / "spool"
        own = {
            "grpc_port": self.grpc_port, "rest_port": rest_port, "host": HOST, "spool_dir": self.spool,
            "processes": processes, **settings,
        }  # fmt: skip
        env = {f"TRINE_GATEWAY_{name.upper()}": str(value) for name, value in own.items()}
        super().__init__(
            "gateway", "inference_gateway.main", log=folder / "gateway.log", address=f"{HOST}:{self.grpc_port}",
            env=env, http_port=rest_port, grpc_port=self.grpc_port, processes=processes,
        )  # fmt: skip
        self._channel: grpc.Channel | None = None

    @property
    def stub(self) -> scoring_grpc.ScoringServiceStub:
        """A client that waits for a server that is just starting."""
        if self._channel is None:
            options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 200)]
            self._channel = grpc.insecure_channel(self.address, options)
        return scoring_grpc.ScoringServiceStub(self._channel)

    def score(
        self, request: scoring.ScoreTransactionRequest, timeout_s: float = 2.0
    ) -> scoring.ScoreTransactionResponse:
        """A unary call, explained; patient, since tests share their cores."""
        return self.stub.ScoreTransaction(request, timeout=timeout_s, metadata=EXPLAIN, wait_for_ready=True)

    def refusal(self, request: scoring.ScoreTransactionRequest) -> grpc.RpcError:
        """The error of a call that must fail."""
        with pytest.raises(grpc.RpcError) as caught:
            self.score(request)
        return caught.value

    def degraded(self) -> dict[str, str]:
        reasons: dict[str, str] = loopback.get(f"{self.http_url}/readyz", 5).json()["degraded"]
        return reasons

    def model_answers(self) -> bool:
        return "model" not in self.degraded()

    def metric(self, name: str, **labels: str) -> float:
        """Sum of the samples of a metric that carry `labels`."""
        page = loopback.get(f"{self.http_url}/metrics", 5).text
        return sum(
            sample.value
            for family in text_string_to_metric_families(page)
            for sample in family.samples
            if sample.name == f"trine_gateway_{name}" and labels.items() <= sample.labels.items()
        )

    def spooled(self) -> list[Path]:
        return sorted(self.spool.glob("*/*.wal"))

    def crash(self) -> None:
        """kill -9, and nobody starts it again."""
        assert self.pid is not None
        os.kill(self.pid, signal.SIGKILL)
        assert self.process is not None
        self.process.wait(10)


class NewGateway(Protocol):
    """Starts a gateway with settings of its own on top of the scene's; `start=False` only makes it."""

    def __call__(self, *, processes: int = 1, start: bool = True, **settings: object) -> Gateway: ...


class NewGateways(Protocol):
    """Starts several gateways at a time, each a process with a spool of its own."""

    def __call__(self, count: int, **settings: object) -> list[Gateway]: ...


@dataclass
class Topic:
    """A topic from where it ended when the test began; what was read once is not read again."""

    bootstrap: str
    name: str
    since: Mapping[int, int]
    _next: dict[int, int] = field(init=False)
    _found: list[tuple[int, bytes]] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        self._next = dict(self.since)

    @classmethod
    def now(cls, bootstrap: str, name: str) -> Topic:
        with _consumer(bootstrap) as consumer:
            ends = _ends(consumer, name)
        return cls(bootstrap, name, ends)

    def messages(self) -> list[tuple[int, bytes]]:
        """Partition and value of everything that came since, in each partition's order."""
        with _consumer(self.bootstrap) as consumer:
            ends = _ends(consumer, self.name)
            left = {p: end - self._next[p] for p, end in ends.items() if end > self._next[p]}
            consumer.assign([TopicPartition(self.name, p, self._next[p]) for p in left])
            missing = sum(left.values())
            deadline = time.monotonic() + 20
            while missing > 0 and time.monotonic() < deadline:
                for message in consumer.consume(1_000, 0.2):
                    assert message.error() is None, message.error()
                    partition = message.partition() or 0
                    self._next[partition] = (message.offset() or 0) + 1
                    self._found.append((partition, message.value() or b""))
                    missing -= 1
        return list(self._found)

    def transactions(self) -> list[events.Transaction]:
        return [events.Transaction.FromString(value) for _, value in self.messages()]

    def decisions(self) -> list[events.DecisionRecord]:
        return [events.DecisionRecord.FromString(value) for _, value in self.messages()]


def _ends(consumer: Consumer, name: str) -> dict[int, int]:
    """End offset of every partition; a broker that has just started needs a moment to lead them."""
    deadline = time.monotonic() + 30
    while True:
        try:
            return {p: consumer.get_watermark_offsets(TopicPartition(name, p), 10)[1] for p in range(SHARDS)}
        except KafkaException:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


class _consumer:
    def __init__(self, bootstrap: str) -> None:
        self._consumer = Consumer(
            {"bootstrap.servers": bootstrap, "group.id": "test", "enable.auto.commit": False, "log_level": 0}
        )

    def __enter__(self) -> Consumer:
        return self._consumer

    def __exit__(self, *_: object) -> None:
        self._consumer.close()


def register(server: TorchServe, release: Release) -> None:
    """Also on a server that was killed and has kept the file, but not the model."""
    query = {"url": release.archive_path.as_uri(), "model_name": release.id, "initial_workers": "1"}
    query |= {"synchronous": "true", "batch_size": "1", "max_batch_delay": "0"}
    reply = httpx.post(f"{server.management_url}/models", params=query, timeout=120)
    if "already exists" in reply.text:
        query["url"] = release.archive_path.name
        reply = httpx.post(f"{server.management_url}/models", params=query, timeout=120)
    assert reply.status_code in (200, 409), reply.text
