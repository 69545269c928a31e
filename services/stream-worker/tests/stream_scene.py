"""A scene for the worker's tests: its own topics and plan on the shared Kafka, a Redis database, worker processes."""

from __future__ import annotations

import itertools
import json
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import cast

import numpy as np
import redis
from confluent_kafka import Consumer, Producer, TopicPartition
from feature_store import keys as names
from feature_store.codec import StateCodec
from feature_store.definitions import (
    Count,
    Entity,
    FeaturePlan,
    FeatureView,
    LabelSource,
    Mean,
    RequestFeature,
    Share,
    Source,
    days,
)
from feature_store.sharding import shard_of
from trine.events.v1.events_pb2 import DeadLetter, FraudReport, Transaction
from trine_cli.local.ports import free_port
from trine_cli.local.process import ChildProcess
from trine_cli.local.topics import create_topics

SHARDS = 8
DAY_US = 86_400_000_000
START_US = 1_530_403_200_000_000
LETTERS = "trine.dead-letters"


def make_plan(tag: str) -> FeaturePlan:
    """The shape of the fraud plan with shorter windows, and topics and entities of its own."""
    source = Source(
        "transactions",
        "trine.events.v1.Transaction",
        f"{tag}.transactions",
        "customer_id",
        "transaction_id",
        "event_time_us",
        ("amount",),
    )
    reports = LabelSource(
        "fraud_reports",
        "trine.events.v1.FraudReport",
        f"{tag}.fraud-reports",
        "transaction_id",
        "transaction_id",
        "event_time_us",
        "reported_at_us",
        "fraud",
        source,
    )
    customer = FeatureView(
        "customer", Entity(f"customer-{tag}", "customer_id"), source, (Count(), Mean("amount")), days(1, 2, 3)
    )
    terminal = FeatureView(
        "terminal",
        Entity(f"terminal-{tag}", "terminal_id"),
        source,
        (Count(), Share(reports, "fraud")),
        days(1, 2, 3),
        delay=timedelta(days=2),
    )
    return FeaturePlan("fraud", source, (RequestFeature("amount", "field", "amount"),), (customer, terminal))


@dataclass(frozen=True)
class Load:
    """Transactions and fraud reports, each with the moment of event time at which it is sent."""

    messages: tuple[Transaction | FraudReport, ...]

    @classmethod
    def make(cls, count: int, seed: int = 7, span_days: float = 12.0) -> Load:
        """`count` transactions and a tenth as many reports, reordered by up to eight hours (lateness is a day)."""
        rng = np.random.default_rng(seed)
        times = np.sort(rng.integers(0, int(span_days * DAY_US), count)) + START_US
        out: list[tuple[int, int, Transaction | FraudReport]] = []
        for i, at in enumerate(times.tolist()):
            transaction = Transaction(
                transaction_id=str(i) if i % 10 else f"tx-{i:06x}",
                event_time_us=at,
                customer_id=f"c{int(rng.integers(0, 300))}",
                terminal_id=str(int(rng.integers(0, 500))),
                amount=int(rng.integers(1, 50_000)),
                currency="EUR",
            )
            out.append((at + int(rng.integers(0, DAY_US // 3)), i, transaction))
            if i % 10 == 3:
                for fraud in (True, False) if i % 40 == 3 else (True,):
                    known = at + int(rng.integers(DAY_US // 2, 3 * DAY_US))
                    report = FraudReport(
                        transaction_id=transaction.transaction_id,
                        reported_at_us=known,
                        fraud=fraud,
                        scenario=1,
                        customer_id=transaction.customer_id,
                        terminal_id=transaction.terminal_id,
                        event_time_us=at,
                    )
                    out.append((known, i, report))
        out.sort(key=lambda entry: entry[:2])
        return cls(tuple(message for _, _, message in out))


@dataclass
class Scene:
    """Everything of one run of a plan. `worker()` starts processes; `settled()` waits until all is absorbed."""

    tag: str
    bootstrap: str
    redis_url: str
    folder: Path
    shards: int = SHARDS
    plan: FeaturePlan = field(init=False)
    workers: list[ChildProcess] = field(default_factory=list)
    senders: list[threading.Thread] = field(default_factory=list)
    ports: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.plan = make_plan(self.tag)
        self.topics = (
            self.plan.source.topic,
            self.plan.label_sources[0].topic,
            f"trine.by-terminal-{self.tag}",
        )
        create_topics(self.bootstrap, self.shards, names=self.topics)
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "plan.json").write_text(json.dumps(self.plan.to_json()))
        self.redis = redis.Redis.from_url(self.redis_url)
        self._count = itertools.count()
        self._stack = ExitStack()

    def close(self) -> None:
        for worker in self.workers:
            worker.kill()
        for sender in self.senders:
            sender.join()
        self._stack.close()
        self.redis.close()

    # -- worker processes

    def worker(self, worker_id: str = "w1", wait: bool = True, **settings: object) -> ChildProcess:
        """Starts a worker; `settings` as TRINE_WORKER_*."""
        port = free_port()
        values: dict[str, object] = {
            "redis_url": self.redis_url,
            "kafka_bootstrap": self.bootstrap,
            "plan_file": self.folder / "plan.json",
            "worker_id": worker_id,
            "host": "127.0.0.1",
            "metrics_port": port,
            "shards": self.shards,
            "group_prefix": self.tag,
            "session_timeout_ms": 2_000,
            "transaction_timeout_ms": 3_000,
            "heartbeat_s": 0.1,
            "log_level": "debug",
            **settings,
        }
        env = {f"TRINE_WORKER_{name.upper()}": str(value) for name, value in values.items()}
        log = self.folder / f"{worker_id}-{next(self._count)}.log"
        child = ChildProcess(f"worker {worker_id}", [sys.executable, "-m", "stream_worker.main"], log=log, env=env)
        self.workers.append(child)
        self.ports[child.pid] = port
        if wait:
            child.wait_ready(lambda: None if self.health(child, "readyz") == 200 else "not ready", 30)
        return child

    def health(self, worker: ChildProcess, path: str) -> int:
        """The status that the worker's /livez or /readyz answers; 0 where nothing does."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.ports[worker.pid]}/{path}", timeout=2) as reply:
                return int(reply.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    def metric(self, worker: ChildProcess, name: str, **labels: str) -> float:
        """Sum of a metric's samples that have these labels."""
        url = f"http://127.0.0.1:{self.ports[worker.pid]}/metrics"
        with urllib.request.urlopen(url, timeout=2) as reply:
            lines = reply.read().decode().splitlines()
        wanted = [f'{k}="{v}"' for k, v in labels.items()]
        found = [line for line in lines if line.split("{")[0].split(" ")[0] == name and all(w in line for w in wanted)]
        return sum(float(line.rsplit(" ", 1)[1]) for line in found)

    # -- events

    def send(self, messages: Iterable[Transaction | FraudReport]) -> None:
        """Produce as gateways do: the partition is the key's shard."""
        producer = Producer(
            {"bootstrap.servers": self.bootstrap, "log_level": 0, "enable.idempotence": True, "linger.ms": 5}
        )
        for message in messages:
            report = isinstance(message, FraudReport)
            key = message.transaction_id if report else message.customer_id
            topic = self.topics[1] if report else self.topics[0]
            self._produce(producer, topic, key, message.SerializeToString(), shard_of(key, self.shards))
        assert producer.flush(30) == 0

    def send_raw(self, topic: str, rows: Sequence[tuple[bytes | None, bytes | None, int]]) -> None:
        """(key, value, partition) as they are."""
        producer = Producer({"bootstrap.servers": self.bootstrap, "log_level": 0, "message.max.bytes": 4_000_000})
        for key, value, partition in rows:
            producer.produce(topic, value, key=key, partition=partition)
        assert producer.flush(30) == 0

    @staticmethod
    def _produce(producer: Producer, topic: str, key: str, value: bytes, partition: int) -> None:
        while True:
            try:
                producer.produce(topic, value, key=key, partition=partition)
                return
            except BufferError:
                producer.poll(0.1)

    def sending(self, messages: Sequence[Transaction | FraudReport], per_second: float) -> threading.Thread:
        """Sends in a thread at a rate; join it."""

        def run() -> None:
            step = max(1, int(per_second / 20))
            began = time.monotonic()
            for i in range(0, len(messages), step):
                self.send(messages[i : i + step])
                time.sleep(max(0.0, began + (i + step) / per_second - time.monotonic()))

        thread = threading.Thread(target=run)
        thread.start()
        self.senders.append(thread)
        return thread

    # -- what came of them

    def metas(self) -> dict[tuple[str, int], dict[str, str]]:
        """(view, shard) → what Redis holds beside the shard's state."""
        version = cast(bytes, self.redis.get(names.VERSION_POINTER) or b"1").decode()
        out = {}
        for view in self.plan.views:
            for shard in range(self.shards):
                found = cast(dict[bytes, bytes], self.redis.hgetall(names.meta(view.entity.name, shard, version)))
                out[view.name, shard] = {k.decode(): v.decode() for k, v in found.items()}
        return out

    def settled(self, timeout_s: float = 60.0) -> None:
        """Waits until every shard says that all recorded before now is absorbed."""
        now_us = time.time_ns() // 1000
        until(
            lambda: all(int(m.get("progress_us", 0)) > now_us for m in self.metas().values()),
            timeout_s,
            lambda: f"not absorbed: {self._behind(now_us)}",
        )

    def _behind(self, now_us: int) -> object:
        return {k: m for k, m in self.metas().items() if int(m.get("progress_us", 0)) <= now_us}

    def states(self) -> dict[tuple[str, str], bytes]:
        """(view, key) → state, every byte of it."""
        out = {}
        version = cast(bytes, self.redis.get(names.VERSION_POINTER) or b"1").decode()
        for key in self.redis.scan_iter(match=f"{{*}}s:{version}:*", count=5000):
            _, _, view, entity_key = key.decode().split(":", 3)
            out[view, entity_key] = cast(bytes, self.redis.get(key))
        return out

    def letters(self) -> list[DeadLetter]:
        """Dead letters about this scene's topics, as a read_committed reader sees them."""
        consumer = Consumer(
            {
                "bootstrap.servers": self.bootstrap,
                "group.id": uuid.uuid4().hex,
                "isolation.level": "read_committed",
                "enable.partition.eof": True,
                "log_level": 0,
                "auto.offset.reset": "earliest",
            }
        )
        count = len(consumer.list_topics(LETTERS, timeout=10).topics[LETTERS].partitions)
        consumer.assign([TopicPartition(LETTERS, p, 0) for p in range(count)])
        ended: set[int] = set()
        out = []
        deadline = time.monotonic() + 20
        while len(ended) < count:
            assert time.monotonic() < deadline, "dead letters cannot be read to their end"
            for message in consumer.consume(500, 0.2):
                if message.error():
                    ended.add(message.partition() or 0)
                else:
                    letter = DeadLetter.FromString(message.value() or b"")
                    if letter.topic in self.topics:
                        out.append(letter)
        consumer.close()
        return out

    def points(
        self, view: str, only: str | None = None
    ) -> dict[str, tuple[set[tuple[int, int, int]], set[tuple[int, int, int, int]]]]:
        """Key (all, or one) → its events (time, id, amount or 0) and labels (id, time, known at, value)."""
        declared = next(v for v in self.plan.views if v.name == view)
        codec = StateCodec(declared)
        found = {key: raw for (v, key), raw in self.states().items() if v == view and only in (None, key)}
        out = {}
        for key, raw in found.items():
            p = codec.decode([raw])
            amounts = p.columns["amount"].tolist() if "amount" in p.columns else [0] * len(p.id)
            labels: set[tuple[int, int, int, int]] = set()
            if p.labels is not None:
                columns = (p.labels.id, p.labels.time_us, p.labels.known_at_us, p.labels.value)
                labels = set(zip(*(c.tolist() for c in columns), strict=True))
            out[key] = set(zip(p.time_us.tolist(), p.id.tolist(), amounts, strict=True)), labels
        return out


def until(true: Callable[[], bool], timeout_s: float, otherwise: Callable[[], str] = lambda: "") -> None:
    """Polls until `true`, at most `timeout_s` seconds."""
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, otherwise()
        time.sleep(0.02)


NewScene = Callable[..., Scene]
