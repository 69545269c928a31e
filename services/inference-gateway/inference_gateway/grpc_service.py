"""gRPC in front of the scorer: ScoringService with raw bytes in and out, so that messages are parsed and built once.

Errors carry google.rpc.BadRequest with the field at fault in `grpc-status-details-bin`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import NoReturn

import grpc
from service_kit.logs import get_logger
from service_kit.problems import status_details
from trine.scoring.v1 import scoring_pb2 as scoring

from inference_gateway.decision import Request
from inference_gateway.errors import GatewayError, InvalidRequest, NotRecorded, PayloadConflict
from inference_gateway.scorer import Scorer
from inference_gateway.transaction_adapter import REPEATED
from inference_gateway.wire import bytes_tag, varint
from inference_gateway.work import Answer, Job, Outcome

SERVICE = scoring.DESCRIPTOR.services_by_name["ScoringService"].full_name
EXPLAIN = "trine-explain"

_ITEM = bytes_tag(scoring.ScoreTransactionsResponse.DESCRIPTOR, "items")
_RESPONSE = bytes_tag(scoring.ScoredItem.DESCRIPTOR, "response")
_ERROR = bytes_tag(scoring.ScoredItem.DESCRIPTOR, "error")
_CODES = {
    InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    PayloadConflict: grpc.StatusCode.ALREADY_EXISTS,
    NotRecorded: grpc.StatusCode.UNAVAILABLE,
}

Context = grpc.aio.ServicerContext[bytes, bytes]
log = get_logger(__name__)


class ScoringService:
    """`bulk_deadline_s`: for a message of the stream; `bulk_window`: messages of a stream worked on at a time."""

    def __init__(self, scorer: Scorer, *, max_unary_bytes: int, bulk_deadline_s: float, bulk_window: int) -> None:
        self._scorer = scorer
        self._max_unary_bytes = max_unary_bytes
        self._bulk_deadline_s, self._bulk_window = bulk_deadline_s, bulk_window

    def add_to(self, server: grpc.aio.Server) -> None:
        """Register with a server. Messages stay bytes: garbage is answered here, with INVALID_ARGUMENT."""
        server.add_generic_rpc_handlers(
            (
                grpc.method_handlers_generic_handler(
                    SERVICE,
                    {
                        "ScoreTransaction": grpc.unary_unary_rpc_method_handler(self.score_transaction),
                        "ScoreTransactions": grpc.stream_stream_rpc_method_handler(self.score_transactions),
                    },
                ),
            )
        )

    async def score_transaction(self, data: bytes, context: Context) -> bytes:
        """One transaction within the client's deadline."""
        remaining_s = context.time_remaining()
        try:
            if len(data) > self._max_unary_bytes:
                raise InvalidRequest("request", f"has {len(data)} bytes; must have at most {self._max_unary_bytes}")
            request: Request | GatewayError = self._scorer.adapter.unary(data)
        except InvalidRequest as error:
            request = error
        job = self._scorer.submit((request,), remaining_s)
        await job.done
        outcome = job.outcomes[0]
        if not isinstance(outcome, Answer):
            await _abort(context, outcome)
        return self._bytes(outcome, _explain(context))

    async def score_transactions(self, requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        """Batches in, batches out, in order; a few batches are under way at a time."""
        explain = _explain(context)
        jobs: asyncio.Queue[Job | InvalidRequest | None] = asyncio.Queue(self._bulk_window - 1)
        reader = asyncio.create_task(self._read(requests, jobs))
        waiting: deque[Job] = deque()
        try:
            while (job := await jobs.get()) is not None:
                if isinstance(job, InvalidRequest):
                    await _abort(context, job)
                waiting.append(job)
                await job.done
                waiting.popleft()
                yield self._items(job, explain)
            await reader
        finally:
            reader.cancel()
            await asyncio.wait([reader])

    async def _read(self, requests: AsyncIterator[bytes], jobs: asyncio.Queue[Job | InvalidRequest | None]) -> None:
        try:
            async for data in requests:
                try:
                    batch = self._scorer.adapter.batch(data)
                except InvalidRequest as error:
                    await jobs.put(error)
                    return
                await self._scorer.room_for(len(batch))
                await jobs.put(self._scorer.submit(batch, self._bulk_deadline_s, patient=True))
        finally:
            await jobs.put(None)

    def _items(self, job: Job, explain: bool) -> bytes:
        """A serialised ScoreTransactionsResponse."""
        parts: list[bytes] = []
        for outcome in job.outcomes:
            if isinstance(outcome, Answer):
                tag, content = _RESPONSE, self._bytes(outcome, explain)
            else:
                tag, content = _ERROR, _item_error(outcome)
            inner = varint(len(content))
            parts += (_ITEM, varint(len(tag) + len(inner) + len(content)), tag, inner, content)
        return b"".join(parts)

    def _bytes(self, answer: Answer, explain: bool) -> bytes:
        response = answer.response + REPEATED if answer.repeated else answer.response
        return self._scorer.adapter.explained(response, answer.vector) if explain else response


def _explain(context: Context) -> bool:
    metadata = context.invocation_metadata()
    return metadata is not None and (EXPLAIN, "1") in metadata


def _item_error(outcome: Outcome | None) -> bytes:
    error = outcome if isinstance(outcome, GatewayError) else GatewayError("no outcome")
    code = _CODES.get(type(error), grpc.StatusCode.INTERNAL).value[0]
    return scoring.ItemError(code=code, message=error.message, field=error.field).SerializeToString()


async def _abort(context: Context, outcome: Outcome | None) -> NoReturn:
    if not isinstance(outcome, GatewayError):
        log.error("a request ended without an outcome")
        await context.abort(grpc.StatusCode.INTERNAL, "no outcome")
    code = _CODES.get(type(outcome), grpc.StatusCode.INTERNAL)
    reason = "PAYLOAD_CONFLICT" if isinstance(outcome, PayloadConflict) else ""
    await context.abort(code, outcome.message, status_details(code, outcome.message, outcome.field, reason))
