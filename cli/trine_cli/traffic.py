"""A dataset's transactions as the gateway's clients send them, in time, with fraud reports between them.

`load_traffic` reads the period; `send` sends it and yields a `Reply` for every transaction, in the order in which they
are settled. Unary calls by default, many in flight; `bulk` uses the stream of batches. Runs its own event loop in a
thread, so that who consumes the replies does not delay a request.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import uvloop
from confluent_kafka import Producer
from feature_store.dataset import load, times_us
from feature_store.sharding import shard_of
from numpy.typing import NDArray
from trine.events.v1.events_pb2 import FraudReport
from trine.scoring.v1.scoring_pb2 import (
    ScoredItem,
    ScoreTransactionRequest,
    ScoreTransactionResponse,
    ScoreTransactionsRequest,
    ScoreTransactionsResponse,
    Transaction,
)

from models.fraud.sources import FRAUD_REPORT_FILES, load_transactions

REPORTS_TOPIC = "trine.fraud-reports"
UNARY = "/trine.scoring.v1.ScoringService/ScoreTransaction"
BULK = "/trine.scoring.v1.ScoringService/ScoreTransactions"
_CODES = {code.value[0]: code for code in grpc.StatusCode}
_FLUSH_S = 30.0
_CONNECT_S = 10.0
#: Batches of the stream without an answer.
_BATCHES = 8


@dataclass(frozen=True, slots=True, eq=False)
class Traffic:
    """n transactions by event time; `reports` and after how many transactions each is due, int64[m]."""

    ids: list[str]
    time_us: NDArray[np.int64]
    customers: list[str]
    terminals: list[str]
    amounts: list[int]
    currencies: list[str]
    reports: list[FraudReport]
    report_at: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)

    def last(self, count: int) -> Traffic:
        """Its last `count` transactions, without reports."""
        part = slice(max(0, len(self) - count), None)
        return Traffic(
            self.ids[part], self.time_us[part], self.customers[part], self.terminals[part], self.amounts[part],
            self.currencies[part], [], np.zeros(0, dtype=np.int64),
        )  # fmt: skip

    def transaction(self, i: int) -> Transaction:
        """Transaction `i` as the API takes it."""
        message = Transaction(
            transaction_id=self.ids[i],
            customer_id=self.customers[i],
            terminal_id=self.terminals[i],
            amount_minor=self.amounts[i],
            currency=self.currencies[i],
        )
        seconds, micros = divmod(int(self.time_us[i]), 1_000_000)
        message.event_time.seconds, message.event_time.nanos = seconds, micros * 1_000
        return message


@dataclass(frozen=True, slots=True)
class SendOptions:
    """`rate`: transactions a second, 0 for as fast as answers come. `in_flight`: unary calls, or batches in bulk."""

    target: str
    rate: float = 0.0
    bulk: bool = False
    in_flight: int = 256
    batch: int = 256
    deadline_s: float = 0.1
    kafka_bootstrap: str | None = None
    shards: int = 64


@dataclass(frozen=True, slots=True)
class Reply:
    """What became of transaction `index`. `sent_at`: Unix seconds; `latency_s`: as the client saw it (bulk: of its
    batch). `response` is None where `error` (a gRPC status name) tells why, `detail` in words."""

    index: int
    sent_at: float
    latency_s: float
    response: ScoreTransactionResponse | None
    error: str = ""
    detail: str = ""


def load_traffic(dataset: Path, from_us: int | None, to_us: int | None) -> Traffic:
    """Transactions of the period, and the fraud reports that became known in it. Raises DatasetError."""
    table = load_transactions(dataset, from_us, to_us)
    time_us = times_us(table, "event_time")
    reports = _with_transactions(load(dataset, FRAUD_REPORT_FILES, from_us, to_us), dataset, to_us)
    messages = [
        FraudReport(
            transaction_id=id_, reported_at_us=known, fraud=fraud, scenario=scenario, customer_id=customer,
            terminal_id=terminal, event_time_us=at,
        )
        for id_, known, fraud, scenario, customer, terminal, at in zip(
            reports.column("transaction_id").to_pylist(), times_us(reports, "reported_at").tolist(),
            reports.column("fraud").to_pylist(), reports.column("scenario").to_pylist(),
            reports.column("customer_id").to_pylist(), reports.column("terminal_id").to_pylist(),
            times_us(reports, "event_time").tolist(), strict=True,
        )
    ]  # fmt: skip
    return Traffic(
        ids=table.column("transaction_id").to_pylist(),
        time_us=time_us,
        customers=table.column("customer_id").to_pylist(),
        terminals=table.column("terminal_id").to_pylist(),
        amounts=table.column("amount").to_pylist(),
        currencies=table.column("currency").to_pylist(),
        reports=messages,
        report_at=np.searchsorted(time_us, times_us(reports, "reported_at"), side="right").astype(np.int64),
    )


def send(traffic: Traffic, options: SendOptions) -> Iterator[Reply]:
    """Send all of it; one Reply a transaction, as they are settled. Leaving the iteration early stops the sending.

    Raises grpc.RpcError where the gateway cannot be reached at the start, KafkaException or TimeoutError where the
    fraud reports cannot be delivered.
    """
    replies: queue.SimpleQueue[list[Reply] | BaseException | None] = queue.SimpleQueue()
    sender = _Sender(traffic, options, replies)
    thread = threading.Thread(target=sender.run, name="traffic", daemon=True)
    thread.start()
    try:
        while (found := replies.get()) is not None:
            if isinstance(found, BaseException):
                raise found
            yield from found
    finally:
        sender.stop()
        thread.join()


class _Sender:
    def __init__(
        self,
        traffic: Traffic,
        options: SendOptions,
        replies: queue.SimpleQueue[list[Reply] | BaseException | None],
    ) -> None:
        self._traffic, self._options, self._replies = traffic, options, replies
        self._stopping = False
        self._next = 0
        self._reports = deque(zip(traffic.report_at.tolist(), traffic.reports, strict=True))
        self._producer: Producer | None = None
        self._undelivered: list[str] = []
        self._began = 0.0

    def stop(self) -> None:
        self._stopping = True

    def run(self) -> None:
        """The thread's body."""
        end: BaseException | None = None
        try:
            uvloop.run(self._send())
        except BaseException as error:  # raised by `send` in the caller's thread
            end = error
        self._replies.put(end)
        if end is not None:
            self._replies.put(None)

    async def _send(self) -> None:
        options = self._options
        if options.kafka_bootstrap:
            self._producer = Producer(
                {"bootstrap.servers": options.kafka_bootstrap, "enable.idempotence": True, "linger.ms": 5}
            )
        async with grpc.aio.insecure_channel(options.target) as channel:
            await _connected(channel, options.target)
            self._began = time.perf_counter()
            if options.bulk:
                await self._bulk(channel)
            else:
                await asyncio.gather(*(self._caller(channel) for _ in range(max(1, options.in_flight))))
        if not self._stopping:
            self._publish(len(self._traffic))
        if self._producer is not None:
            left = await asyncio.to_thread(self._producer.flush, _FLUSH_S)
            if left or self._undelivered:
                raise TimeoutError(
                    f"Kafka did not take {left + len(self._undelivered)} fraud reports {self._undelivered[:1]}"
                )
            # Else it would go on looking for a Kafka that is stopped later, and complain.
            self._producer.close()

    async def _due(self, count: int) -> int | None:
        """Wait until the next `count` transactions are due; the first one's index, None at the end."""
        first = self._next
        if self._stopping or first >= len(self._traffic):
            return None
        self._next += count
        if self._options.rate > 0:
            wait_s = self._began + first / self._options.rate - time.perf_counter()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
        self._publish(first)
        return first

    async def _caller(self, channel: grpc.aio.Channel) -> None:
        """One call after the other; as many of these run as calls may be in flight."""
        method = channel.unary_unary(
            UNARY, ScoreTransactionRequest.SerializeToString, ScoreTransactionResponse.FromString
        )
        while (i := await self._due(1)) is not None:
            request = ScoreTransactionRequest(transaction=self._traffic.transaction(i))
            sent_at, began = time.time(), time.perf_counter()
            try:
                response = await method(request, timeout=self._options.deadline_s)
                reply = Reply(i, sent_at, time.perf_counter() - began, response)
            except grpc.aio.AioRpcError as error:
                took = time.perf_counter() - began
                reply = Reply(i, sent_at, took, None, error.code().name, error.details() or "")
            self._replies.put([reply])

    async def _bulk(self, channel: grpc.aio.Channel) -> None:
        method = channel.stream_stream(
            BULK, ScoreTransactionsRequest.SerializeToString, ScoreTransactionsResponse.FromString
        )
        room = asyncio.Semaphore(max(1, min(self._options.in_flight, _BATCHES)))
        sent: deque[tuple[int, float, float]] = deque()
        async for response in method(self._batches(room, sent)):
            room.release()
            first, sent_at, began = sent.popleft()
            took_s = time.perf_counter() - began
            self._replies.put([_reply(first + k, sent_at, took_s, item) for k, item in enumerate(response.items)])

    async def _batches(
        self, room: asyncio.Semaphore, sent: deque[tuple[int, float, float]]
    ) -> AsyncIterator[ScoreTransactionsRequest]:
        """Batches as they are due, as long as not too many are unanswered; `sent` notes index and times of each."""
        size = self._options.batch
        while (first := await self._due(size)) is not None:
            await room.acquire()
            rows = range(first, min(first + size, len(self._traffic)))
            message = ScoreTransactionsRequest(transactions=[self._traffic.transaction(i) for i in rows])
            sent.append((first, time.time(), time.perf_counter()))
            yield message

    def _publish(self, upto: int) -> None:
        """The fraud reports that are due before transaction `upto`."""
        reports, producer = self._reports, self._producer
        if producer is None:
            return
        while reports and reports[0][0] <= upto:
            report = reports.popleft()[1]
            producer.produce(
                REPORTS_TOPIC,
                report.SerializeToString(),
                key=report.transaction_id.encode(),
                partition=shard_of(report.transaction_id, self._options.shards),
                headers=[("trine-type", b"trine.events.v1.FraudReport"), ("trine-schema", b"1")],
                on_delivery=self._delivered,
            )
        producer.poll(0)

    def _delivered(self, error: object, _: object) -> None:
        if error is not None:
            self._undelivered.append(str(error))


async def _connected(channel: grpc.aio.Channel, target: str) -> None:
    try:
        await asyncio.wait_for(channel.channel_ready(), _CONNECT_S)
    except TimeoutError:
        raise ConnectionError(f"no gateway answers on {target}; is `trine up` running?") from None


def _reply(index: int, sent_at: float, took_s: float, item: ScoredItem) -> Reply:
    if item.HasField("response"):
        return Reply(index, sent_at, took_s, item.response)
    code = _CODES.get(item.error.code)
    return Reply(index, sent_at, took_s, None, code.name if code else str(item.error.code), item.error.message)


def _with_transactions(reports: pa.Table, dataset: Path, to_us: int | None) -> pa.Table:
    """The reports by time of reporting, with the entities and times of what they label."""
    ids = reports.column("transaction_id").combine_chunks()
    past = load_transactions(dataset, None, to_us)
    past = past.filter(pc.is_in(past.column("transaction_id"), value_set=ids))
    columns = past.select(["transaction_id", "event_time", "customer_id", "terminal_id"])
    joined = reports.join(columns, "transaction_id", join_type="inner")
    return joined.sort_by([("reported_at", "ascending"), ("transaction_id", "ascending")])
