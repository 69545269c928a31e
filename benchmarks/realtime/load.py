"""One load generator for every system under test: the same transactions, the same client, a process of its own.

It shares the cores with what it measures, so it does as little as it can: requests are serialised before the clock
runs, a unary call is one write and one read (inference_gateway.grpc_link: a third of what grpc.aio costs), and of an
answer only its source is looked at.

Closed loop: so many calls in flight, each answered call followed by the next. Open loop: calls start at times drawn
beforehand (Poisson), whatever the answers do, and latency counts from the planned start, so that a stall is not
hidden by the generator's waiting for it. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice

import grpc
import numpy as np
import uvloop
from google.protobuf.timestamp_pb2 import Timestamp
from inference_gateway.grpc_link import CallFailed, GrpcLink
from trine.scoring.v1 import scoring_pb2

Call = Callable[[], Awaitable[bool]]
"""Sends one transaction; true if the model answered."""

SCORE = "/trine.scoring.v1.ScoringService/ScoreTransaction"
SCORE_MANY = "/trine.scoring.v1.ScoringService/ScoreTransactions"
#: Transactions that are serialised beforehand, for each second of a run; a quarter of it for unary calls.
PREPARED_A_SECOND = 16_000
PREDICT = "/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions"


@dataclass
class Measured:
    """Seconds of each answered call, and how many the model answered.

    `transactions` and `cpu_s`: how many were answered over the whole run, warm-up too, and the client's CPU for them.
    """

    seconds: list[float] = field(default_factory=list)
    by_model: int = 0
    failed: int = 0
    elapsed: float = 0.0
    transactions: int = 0
    cpu_s: float = 0.0

    def summary(self) -> dict[str, float]:
        ms = np.array(self.seconds or [0.0]) * 1e3
        p50, p99, p999 = np.percentile(ms, (50, 99, 99.9))
        return {
            "per_second": self.by_model / self.elapsed,
            "answered": len(self.seconds),
            "by_model": self.by_model,
            "failed": self.failed,
            "p50_ms": float(p50),
            "p99_ms": float(p99),
            "p999_ms": float(p999),
            "transactions": self.transactions,
            "cpu_s": self.cpu_s,
        }


def transactions(start_us: int, customers: int, terminals: int, seed: int) -> Iterator[scoring_pb2.Transaction]:
    """Endless transactions a millisecond of event time apart, ids unlike those of any other seed."""
    chance = random.Random(seed)
    n = 0
    while True:
        n += 1
        at = start_us + n * 1_000
        yield scoring_pb2.Transaction(
            transaction_id=f"b{seed}-{n}",
            event_time=Timestamp(seconds=at // 1_000_000, nanos=at % 1_000_000 * 1_000),
            customer_id=str(chance.randrange(customers)),
            terminal_id=str(chance.randrange(terminals)),
            amount_minor=chance.randrange(1, 30_000),
            currency="EUR",
        )


def trine_call(link: GrpcLink, source: Iterator[bytes], timeout: float) -> Call:
    """The typed unary call, as Trine and the in-process service offer it; `source`: serialised requests."""
    method, parsed = link.method(SCORE), scoring_pb2.ScoreTransactionResponse.FromString

    async def call() -> bool:
        return bool(parsed(await link.call(method, next(source), timeout)).source == scoring_pb2.SCORE_SOURCE_MODEL)

    return call


def torchserve_call(link: GrpcLink, model: str, features: int, timeout: float) -> Call:
    """TorchServe called directly: one float32 row a call, the features given for nothing."""
    method = link.method(PREDICT)
    rows = np.random.default_rng(0).integers(0, 30_000, (512, features)).astype("<f4")
    requests = [_prediction_request(model, row.tobytes()) for row in rows]
    n = 0

    async def call() -> bool:
        nonlocal n
        n += 1
        return len(await link.call(method, requests[n % len(requests)], timeout)) > 0

    return call


def batches_of(size: int, source: Iterator[scoring_pb2.Transaction]) -> Iterator[bytes]:
    """Serialised requests of the bulk call, `size` transactions each."""
    while True:
        yield scoring_pb2.ScoreTransactionsRequest(transactions=islice(source, size)).SerializeToString()


def prepared(messages: Iterator[bytes], count: int) -> Iterator[bytes]:
    """The same, the first `count` of them made now."""
    return chain(list(islice(messages, count)), messages)


def _prediction_request(model: str, row: bytes) -> bytes:
    """org.pytorch.serve.grpc.inference.PredictionsRequest{model_name = 1, input = 3: {"data": row}}."""
    entry = b"\x0a\x04data\x12" + bytes([len(row)]) + row
    return b"\x0a" + bytes([len(model)]) + model.encode() + b"\x1a" + bytes([len(entry)]) + entry


async def closed_loop(call: Call, in_flight: int, seconds: float) -> Measured:
    """`in_flight` calls at any time for `seconds`, after a warm-up of a fifth of it that is not counted."""
    out, cpu = Measured(), time.process_time()
    began = time.perf_counter()
    counted_from = began + seconds / 5
    until = counted_from + seconds

    async def one() -> None:
        while (start := time.perf_counter()) < until:
            try:
                by_model = await call()
            except CallFailed:
                out.failed += 1
                continue
            end = time.perf_counter()
            out.transactions += 1
            if start >= counted_from and end <= until:
                out.seconds.append(end - start)
                out.by_model += by_model

    await asyncio.gather(*(one() for _ in range(in_flight)))
    out.elapsed, out.cpu_s = seconds, time.process_time() - cpu
    return out


async def open_loop(call: Call, rate: float, seconds: float) -> Measured:
    """Calls at Poisson times of `rate` a second; latency from the planned start."""
    out, cpu = Measured(), time.process_time()
    gaps = np.random.default_rng(1).exponential(1 / rate, int(rate * seconds))
    began = time.perf_counter() + 0.1
    warm = seconds / 5

    async def one(planned: float) -> None:
        try:
            by_model = await call()
        except CallFailed:
            out.failed += 1
            return
        out.transactions += 1
        if planned - began >= warm:
            out.seconds.append(time.perf_counter() - planned)
            out.by_model += by_model

    async with asyncio.TaskGroup() as group:
        for planned in (began + np.cumsum(gaps)).tolist():
            wait = planned - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            group.create_task(one(planned))
    out.elapsed, out.cpu_s = seconds - warm, time.process_time() - cpu
    return out


async def bulk(channel: grpc.aio.Channel, source: Iterator[bytes], batches: int, seconds: float) -> Measured:
    """The streaming call with `batches` messages of `source` under way."""
    out, cpu = Measured(), time.process_time()
    method = channel.stream_stream(SCORE_MANY, request_serializer=None, response_deserializer=None)
    parsed = scoring_pb2.ScoreTransactionsResponse.FromString
    room = asyncio.Semaphore(batches)
    sent: asyncio.Queue[float] = asyncio.Queue()
    began = time.perf_counter()
    counted_from = began + seconds / 5
    until = counted_from + seconds

    async def requests() -> AsyncIterator[bytes]:
        while time.perf_counter() < until:
            await room.acquire()
            sent.put_nowait(time.perf_counter())
            yield next(source)

    async for reply in method(requests(), timeout=seconds * 4 + 30):
        room.release()
        start, end = sent.get_nowait(), time.perf_counter()
        answer = parsed(reply)
        out.transactions += len(answer.items)
        if counted_from <= end <= until:
            out.seconds.append(end - start)
            items = [item.response.source for item in answer.items if item.HasField("response")]
            out.by_model += sum(s == scoring_pb2.SCORE_SOURCE_MODEL for s in items)
            out.failed += len(answer.items) - len(items)
    out.elapsed, out.cpu_s = seconds, time.process_time() - cpu
    return out


async def run(options: argparse.Namespace) -> Measured:
    source = transactions(options.start_us, options.customers, options.terminals, options.seed)
    if options.shape == "bulk":
        messages = prepared(
            batches_of(options.batch, source), int(PREPARED_A_SECOND * options.seconds) // options.batch
        )
        channel = grpc.aio.insecure_channel(options.target)
        try:
            return await bulk(channel, messages, options.in_flight, options.seconds)
        finally:
            await channel.close(None)
    link = GrpcLink(options.target)
    try:
        if options.system == "torchserve":
            call = torchserve_call(link, options.model, options.features, options.timeout)
        else:
            alone = (scoring_pb2.ScoreTransactionRequest(transaction=t).SerializeToString() for t in source)
            call = trine_call(link, prepared(alone, int(PREPARED_A_SECOND * options.seconds / 4)), options.timeout)
        if options.rate:
            return await open_loop(call, options.rate, options.seconds)
        return await closed_loop(call, options.in_flight, options.seconds)
    finally:
        await link.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--system", choices=("trine", "torchserve"), default="trine")
    parser.add_argument("--shape", choices=("unary", "bulk"), default="unary")
    parser.add_argument("--target", required=True)
    parser.add_argument("--in-flight", type=int, default=1)
    parser.add_argument("--rate", type=float, default=0.0)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--timeout", type=float, default=1.0, help="deadline of a call, seconds")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--model", default="")
    parser.add_argument("--features", type=int, default=15)
    parser.add_argument("--customers", type=int, default=5_000)
    parser.add_argument("--terminals", type=int, default=10_000)
    parser.add_argument("--start-us", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    uvloop.install()
    print(json.dumps(asyncio.run(run(parser.parse_args())).summary()))


if __name__ == "__main__":
    main()
