"""The rival that a team would write itself: grpc.aio, two Redis reads of ready features, ONNX Runtime in process.

It records nothing, guards no deadline, knows no repeats, and its features are as old as whoever wrote them last; it
is here as the floor of what an answer costs in Python.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator
from typing import cast

import grpc
import numpy as np
import onnxruntime  # type: ignore[import-untyped, import-not-found, unused-ignore]
import redis.asyncio
import uvloop
from trine.scoring.v1 import scoring_pb2, scoring_pb2_grpc

REQUEST_FEATURES, CUSTOMER_FEATURES, TERMINAL_FEATURES = 3, 6, 6


class InProcessScoring(scoring_pb2_grpc.ScoringServiceServicer):
    def __init__(self, client: redis.asyncio.Redis, model: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name
        self._redis = client

    async def ScoreTransaction(
        self,
        request: scoring_pb2.ScoreTransactionRequest,
        context: grpc.aio.ServicerContext[scoring_pb2.ScoreTransactionRequest, scoring_pb2.ScoreTransactionResponse],
    ) -> scoring_pb2.ScoreTransactionResponse:
        t = request.transaction
        customer, terminal = await asyncio.gather(
            self._redis.get(f"features:customer:{t.customer_id}"), self._redis.get(f"features:terminal:{t.terminal_id}")
        )
        seconds = t.event_time.seconds
        row = np.zeros((1, REQUEST_FEATURES + CUSTOMER_FEATURES + TERMINAL_FEATURES), dtype=np.float32)
        row[0, :3] = t.amount_minor, (seconds // 86_400 + 3) % 7 >= 5, seconds % 86_400 // 3_600 <= 6
        row[0, 3:9] = np.frombuffer(cast(bytes, customer), dtype=np.float32)
        row[0, 9:] = np.frombuffer(cast(bytes, terminal), dtype=np.float32)
        score = float(self._session.run(None, {self._input: row})[0][0])
        verdict = scoring_pb2.VERDICT_DENY if score > 0.5 else scoring_pb2.VERDICT_APPROVE
        return scoring_pb2.ScoreTransactionResponse(
            transaction_id=t.transaction_id, verdict=verdict, score=score, source=scoring_pb2.SCORE_SOURCE_MODEL
        )

    async def ScoreTransactions(
        self,
        request_iterator: AsyncIterator[scoring_pb2.ScoreTransactionsRequest],
        context: grpc.aio.ServicerContext[scoring_pb2.ScoreTransactionsRequest, scoring_pb2.ScoreTransactionsResponse],
    ) -> AsyncIterator[scoring_pb2.ScoreTransactionsResponse]:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "one transaction a call")
        yield scoring_pb2.ScoreTransactionsResponse()


async def serve(options: argparse.Namespace) -> None:
    client = redis.asyncio.Redis.from_url(options.redis_url)
    rng = np.random.default_rng(0)
    pipe = client.pipeline(transaction=False)
    for kind, keys, width in (
        ("customer", options.customers, CUSTOMER_FEATURES),
        ("terminal", options.terminals, TERMINAL_FEATURES),
    ):
        for key in range(keys):
            pipe.set(f"features:{kind}:{key}", rng.integers(0, 100, width).astype(np.float32).tobytes())
    await pipe.execute()
    server = grpc.aio.server()
    scoring_pb2_grpc.add_ScoringServiceServicer_to_server(InProcessScoring(client, options.model), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--redis-url", required=True)
    parser.add_argument("--model", required=True, help="ONNX file")
    parser.add_argument("--customers", type=int, default=5_000)
    parser.add_argument("--terminals", type=int, default=10_000)
    uvloop.install()
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
