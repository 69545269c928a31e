"""One load generator for every system under test: the same transactions, the same client, a process of its own.

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

import grpc
import numpy as np
import uvloop
from google.protobuf.timestamp_pb2 import Timestamp
from trine.scoring.v1 import scoring_pb2

Call = Callable[[], Awaitable[bool]]
"""Sends one transaction; true if the model answered."""

SCORE = "/trine.scoring.v1.ScoringService/ScoreTransaction"
SCORE_MANY = "/trine.scoring.v1.ScoringService/ScoreTransactions"
PREDICT = "/org.pytorch.serve.grpc.inference.InferenceAPIsService/Predictions"


@dataclass
class Measured:
    """Seconds of each answered call, and how many the model answered."""

    seconds: list[float] = field(default_factory=list)
    by_model: int = 0
    failed: int = 0
    elapsed: float = 0.0

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


def trine_call(channel: grpc.aio.Channel, source: Iterator[scoring_pb2.Transaction], timeout: float) -> Call:
    """The typed unary call, as Trine and the in-process service offer it."""
    method = channel.unary_unary(
        SCORE,
        request_serializer=scoring_pb2.ScoreTransactionRequest.SerializeToString,
        response_deserializer=scoring_pb2.ScoreTransactionResponse.FromString,
    )

    async def call() -> bool:
        request = scoring_pb2.ScoreTransactionRequest(transaction=next(source))
        return bool((await method(request, timeout=timeout)).source == scoring_pb2.SCORE_SOURCE_MODEL)

    return call


def torchserve_call(channel: grpc.aio.Channel, model: str, features: int, timeout: float) -> Call:
    """TorchServe called directly: one float32 row a call, the features given for nothing."""
    method = channel.unary_unary(PREDICT, request_serializer=None, response_deserializer=None)
    rows = np.random.default_rng(0).integers(0, 30_000, (512, features)).astype("<f4")
    requests = [_prediction_request(model, row.tobytes()) for row in rows]
    n = 0

    async def call() -> bool:
        nonlocal n
        n += 1
        return len(await method(requests[n % len(requests)], timeout=timeout)) > 0

    return call


def _prediction_request(model: str, row: bytes) -> bytes:
    """org.pytorch.serve.grpc.inference.PredictionsRequest{model_name = 1, input = 3: {"data": row}}."""
    entry = b"\x0a\x04data\x12" + bytes([len(row)]) + row
    return b"\x0a" + bytes([len(model)]) + model.encode() + b"\x1a" + bytes([len(entry)]) + entry


async def closed_loop(call: Call, in_flight: int, seconds: float) -> Measured:
    """`in_flight` calls at any time for `seconds`, after a warm-up of a fifth of it that is not counted."""
    out = Measured()
    began = time.perf_counter()
    counted_from = began + seconds / 5
    until = counted_from + seconds

    async def one() -> None:
        while (start := time.perf_counter()) < until:
            try:
                by_model = await call()
            except grpc.aio.AioRpcError:
                out.failed += 1
                continue
            end = time.perf_counter()
            if start >= counted_from and end <= until:
                out.seconds.append(end - start)
                out.by_model += by_model

    await asyncio.gather(*(one() for _ in range(in_flight)))
    out.elapsed = seconds
    return out


async def open_loop(call: Call, rate: float, seconds: float) -> Measured:
    """Calls at Poisson times of `rate` a second; latency from the planned start."""
    out = Measured()
    gaps = np.random.default_rng(1).exponential(1 / rate, int(rate * seconds))
    began = time.perf_counter() + 0.1
    warm = seconds / 5

    async def one(planned: float) -> None:
        try:
            by_model = await call()
        except grpc.aio.AioRpcError:
            out.failed += 1
            return
        if planned - began >= warm:
            out.seconds.append(time.perf_counter() - planned)
            out.by_model += by_model

    async with asyncio.TaskGroup() as group:
        for planned in (began + np.cumsum(gaps)).tolist():
            wait = planned - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            group.create_task(one(planned))
    out.elapsed = seconds - warm
    return out


async def bulk(
    channel: grpc.aio.Channel, source: Iterator[scoring_pb2.Transaction], batch: int, batches: int, seconds: float
) -> Measured:
    """The streaming call with `batches` batches of `batch` transactions under way."""
    out = Measured()
    method = channel.stream_stream(
        SCORE_MANY,
        request_serializer=scoring_pb2.ScoreTransactionsRequest.SerializeToString,
        response_deserializer=scoring_pb2.ScoreTransactionsResponse.FromString,
    )
    room = asyncio.Semaphore(batches)
    sent: asyncio.Queue[float] = asyncio.Queue()
    began = time.perf_counter()
    counted_from = began + seconds / 5
    until = counted_from + seconds

    async def requests() -> AsyncIterator[scoring_pb2.ScoreTransactionsRequest]:
        while time.perf_counter() < until:
            await room.acquire()
            message = scoring_pb2.ScoreTransactionsRequest(transactions=[next(source) for _ in range(batch)])
            sent.put_nowait(time.perf_counter())
            yield message

    async for answer in method(requests(), timeout=seconds * 4 + 30):
        room.release()
        start, end = sent.get_nowait(), time.perf_counter()
        if counted_from <= end <= until:
            out.seconds.append(end - start)
            items = [item.response.source for item in answer.items if item.HasField("response")]
            out.by_model += sum(s == scoring_pb2.SCORE_SOURCE_MODEL for s in items)
            out.failed += len(answer.items) - len(items)
    out.elapsed = seconds
    return out


async def run(options: argparse.Namespace) -> Measured:
    channel = grpc.aio.insecure_channel(options.target)
    source = transactions(options.start_us, options.customers, options.terminals, options.seed)
    try:
        if options.shape == "bulk":
            return await bulk(channel, source, options.batch, options.in_flight, options.seconds)
        call = (
            torchserve_call(channel, options.model, options.features, options.timeout)
            if options.system == "torchserve"
            else trine_call(channel, source, options.timeout)
        )
        if options.rate:
            return await open_loop(call, options.rate, options.seconds)
        return await closed_loop(call, options.in_flight, options.seconds)
    finally:
        await channel.close(None)


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
