"""A gRPC client under constant load, a process of its own: `python -m trine_k8s.load_process --target HOST:PORT ...`.

Open loop: calls start at planned times, whatever the answers do, and lateness counts from the plan. A call that fails
is made again with the same id, as a client that needs an answer does; every attempt is told of. Ends when stdin is
closed (so never outlives who started it) or after --seconds. Prints one JSON line an attempt, at its end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import sys
import time
from dataclasses import asdict, dataclass

import grpc
import uvloop
from trine.scoring.v1 import scoring_pb2

SCORE = "/trine.scoring.v1.ScoringService/ScoreTransaction"
_PAUSE_S = 0.25


@dataclass(frozen=True, slots=True)
class Attempt:
    """`at`: Unix seconds at which the transaction was due; `took_ms`: from then on for the first attempt, from its own
    start for a later one; `gateway_ms`: by the gateway's clock."""

    id: str
    customer: str
    amount: int
    attempt: int
    at: float
    took_ms: float
    status: str
    source: str = ""
    release: str = ""
    reason: str = ""
    gateway_ms: float = 0.0
    repeated: bool = False


class Client:
    """`connections` channels, each with a connection of its own, so that a Service spreads them over pods."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        own = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 500)]
        self._channels = [grpc.aio.insecure_channel(options.target, own) for _ in range(options.connections)]
        self._calls = [
            channel.unary_unary(
                SCORE,
                request_serializer=scoring_pb2.ScoreTransactionRequest.SerializeToString,
                response_deserializer=scoring_pb2.ScoreTransactionResponse.FromString,
            )
            for channel in self._channels
        ]
        self._parent = os.getppid()
        self._chance = random.Random(options.seed)
        self.attempts: list[Attempt] = []

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close(None)

    async def settle(self, number: int, due: float) -> None:
        """One transaction until it has an answer or --patience is over."""
        options = self._options
        customer = f"{options.prefix}-c{self._chance.randrange(options.customers)}"
        transaction = scoring_pb2.Transaction(
            transaction_id=f"{options.prefix}-{number}",
            customer_id=customer,
            terminal_id=f"{options.prefix}-t{self._chance.randrange(options.customers)}",
            amount_minor=self._chance.randrange(1, 20_000),
            currency="EUR",
        )
        transaction.event_time.FromMicroseconds(int(due * 1e6))
        request = scoring_pb2.ScoreTransactionRequest(transaction=transaction)
        began, until, attempt = due, time.time() + options.patience, 0
        while True:
            attempt += 1
            # The same connection is as good as another: each finds its way by itself.
            call = self._calls[(number + attempt) % len(self._calls)]
            told = (transaction.transaction_id, customer, transaction.amount_minor, attempt, due)
            try:
                answer = await call(request, timeout=options.timeout)
            except grpc.aio.AioRpcError as error:
                self.attempts.append(
                    Attempt(*told, (time.time() - began) * 1e3, error.code().name, reason=error.details() or "")
                )
                if time.time() > until or os.getppid() != self._parent:
                    return
                await asyncio.sleep(_PAUSE_S)
                began = time.time()
                continue
            self.attempts.append(
                Attempt(
                    *told,
                    took_ms=(time.time() - began) * 1e3,
                    status="OK",
                    source=scoring_pb2.ScoreSource.Name(answer.source).removeprefix("SCORE_SOURCE_").lower(),
                    release=answer.release,
                    reason=answer.fallback_reason,
                    gateway_ms=answer.latency.total_us / 1e3,
                    repeated=answer.repeated_request,
                )
            )
            return


async def run(options: argparse.Namespace) -> list[Attempt]:
    client, stop = Client(options), asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), _closed, stop)
    try:
        async with asyncio.TaskGroup() as group:
            if options.in_flight:
                for lane in range(options.in_flight):
                    group.create_task(_lane(client, lane, options, stop))
            else:
                await _open_loop(client, options, stop, group)
    finally:
        await client.close()
    return client.attempts


def _closed(stop: asyncio.Event) -> None:
    """Nobody writes to stdin: it becomes readable when it is closed."""
    asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
    stop.set()


async def _open_loop(
    client: Client, options: argparse.Namespace, stop: asyncio.Event, group: asyncio.TaskGroup
) -> None:
    began, number = time.time() + 0.05, options.first
    while not stop.is_set() and number - options.first < options.rate * options.seconds:
        due = began + (number - options.first) / options.rate
        wait = due - time.time()
        if wait > 0:
            await asyncio.sleep(wait)
        group.create_task(client.settle(number, due))
        number += 1


async def _lane(client: Client, lane: int, options: argparse.Namespace, stop: asyncio.Event) -> None:
    """Closed loop: each answer is followed by the next call."""
    until, number = time.time() + options.seconds, 0
    while not stop.is_set() and time.time() < until:
        await client.settle(options.first + lane * 1_000_000 + number, time.time())
        number += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", required=True)
    parser.add_argument("--prefix", required=True, help="of ids, customers and terminals; new for each run")
    parser.add_argument("--first", type=int, default=0, help="number of the first transaction")
    parser.add_argument("--rate", type=float, default=20.0, help="transactions a second")
    parser.add_argument("--in-flight", type=int, default=0, help="closed loop with so many calls, instead of a rate")
    parser.add_argument("--seconds", type=float, default=3_600.0)
    parser.add_argument("--connections", type=int, default=4)
    parser.add_argument("--customers", type=int, default=40)
    parser.add_argument("--timeout", type=float, default=20.0, help="of a call, seconds")
    parser.add_argument("--patience", type=float, default=180.0, help="how long a transaction is tried again, seconds")
    parser.add_argument("--seed", type=int, default=0)
    uvloop.install()
    for attempt in asyncio.run(run(parser.parse_args())):
        print(json.dumps(asdict(attempt)))


if __name__ == "__main__":
    main()
