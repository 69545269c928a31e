"""gRPC and REST in front of the reads: trine.predictions.v1.PredictionService and GET /v1/predictions/{job}/{key}."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NoReturn, cast

import grpc
from batch_scorer.runs import Run
from fastapi import APIRouter, Response
from google.protobuf.timestamp_pb2 import Timestamp
from pydantic import BaseModel
from service_kit.problems import ProblemBody, problem, status_details
from trine.predictions.v1 import predictions_pb2 as pb
from trine.predictions.v1 import predictions_pb2_grpc

from inference_gateway.errors import GatewayError, InvalidRequest
from inference_gateway.prediction_reads import PredictionNotFound, PredictionReads, PredictionsUnavailable, Read

SERVICE = pb.DESCRIPTOR.services_by_name["PredictionService"].full_name
_CODES: dict[type[GatewayError], tuple[grpc.StatusCode, int]] = {
    InvalidRequest: (grpc.StatusCode.INVALID_ARGUMENT, 422),
    PredictionNotFound: (grpc.StatusCode.NOT_FOUND, 404),
    PredictionsUnavailable: (grpc.StatusCode.UNAVAILABLE, 503),
}
_RESPONSES: dict[int | str, dict[str, Any]] = {  # as FastAPI types it
    404: {"model": ProblemBody, "description": "The job has no published run, or the run not this key"},
    422: {"model": ProblemBody, "description": "A field is wrong; `field` names it"},
    503: {"model": ProblemBody, "description": "Redis is away, or lost rows of the run"},
}

Context = grpc.aio.ServicerContext[Any, Any]


class PredictionServicer(predictions_pb2_grpc.PredictionServiceServicer):
    """Add it with `add_PredictionServiceServicer_to_server`."""

    def __init__(self, reads: PredictionReads) -> None:
        self._reads = reads

    def add_to(self, server: grpc.aio.Server) -> None:
        predictions_pb2_grpc.add_PredictionServiceServicer_to_server(self, server)

    async def GetPrediction(self, request: pb.GetPredictionRequest, context: Context) -> pb.GetPredictionResponse:
        try:
            read = await self._reads.one(request.job, request.key)
        except GatewayError as error:
            await _abort(context, error)
        return pb.GetPredictionResponse(
            run=_run(read), prediction=_prediction(request.key, read.predicted.values[0] or {})
        )

    async def BatchGetPredictions(
        self, request: pb.BatchGetPredictionsRequest, context: Context
    ) -> pb.BatchGetPredictionsResponse:
        try:
            read = await self._reads.many(request.job, list(request.keys))
        except GatewayError as error:
            await _abort(context, error)
        both = list(zip(request.keys, read.predicted.values, strict=True))
        return pb.BatchGetPredictionsResponse(
            run=_run(read),
            predictions=[_prediction(key, values) for key, values in both if values is not None],
            unknown_keys=[key for key, values in both if values is None],
        )

    async def GetRecommendations(
        self, request: pb.GetRecommendationsRequest, context: Context
    ) -> pb.GetRecommendationsResponse:
        try:
            read, items = await self._reads.recommendations(request.job, request.user_id, request.limit)
        except GatewayError as error:
            await _abort(context, error)
        return pb.GetRecommendationsResponse(run=_run(read), items=_ranking(items).items)


class RunBody(BaseModel):
    """The run that an answer is from; `age_seconds`: from its cut-off to now; `stale`: older than its job allows."""

    run: str
    job: str
    cutoff: datetime
    published: datetime
    release: str
    age_seconds: float
    stale: bool


class PredictionBody(BaseModel):
    """A key's outputs by name: numbers, texts, vectors (lists of numbers), rankings (lists of item and score)."""

    key: str
    values: dict[str, Any]  # JSON
    run: RunBody


def prediction_router(reads: PredictionReads) -> APIRouter:
    """GET /v1/predictions/{job}/{key}."""
    router = APIRouter(tags=["predictions"])

    @router.get(
        "/v1/predictions/{job}/{key}",
        summary="A key's prediction of the job's published run",
        response_model=PredictionBody,
        responses=_RESPONSES,
    )
    async def prediction(job: str, key: str) -> PredictionBody | Response:
        try:
            read = await reads.one(job, key)
        except GatewayError as error:
            return problem(_CODES.get(type(error), (grpc.StatusCode.INTERNAL, 500))[1], error.message, error.field)
        run = read.run
        body = RunBody(
            run=run.run,
            job=run.job,
            cutoff=datetime.fromtimestamp(run.cutoff_us / 1e6, UTC),
            published=datetime.fromtimestamp(run.published_us / 1e6, UTC),
            release=run.release,
            age_seconds=read.age.age_s,
            stale=read.age.stale,
        )
        return PredictionBody(key=key, values=read.predicted.values[0] or {}, run=body)

    return router


def _run(read: Read) -> pb.PublishedRun:
    run: Run = read.run
    return pb.PublishedRun(
        run=run.run,
        job=run.job,
        cutoff=_timestamp(run.cutoff_us),
        published=_timestamp(run.published_us),
        release=run.release,
        age_seconds=read.age.age_s,
        stale=read.age.stale,
    )


def _prediction(key: str, values: Mapping[str, object]) -> pb.Prediction:
    return pb.Prediction(key=key, values={name: _value(value) for name, value in values.items() if value is not None})


def _value(value: object) -> pb.Value:
    match value:
        case bool():
            return pb.Value(flag=value)
        case int():
            return pb.Value(integer=value)
        case float():
            return pb.Value(number=value)
        case str():
            return pb.Value(text=value)
        case [dict(), *_] | []:
            return pb.Value(ranking=_ranking(cast(list[dict[str, Any]], value)))
        case list():
            return pb.Value(vector=pb.Vector(values=value))
    raise TypeError(f"no prediction is a {type(value).__name__}")


def _ranking(items: list[dict[str, Any]]) -> pb.Ranking:
    return pb.Ranking(items=[pb.RankedItem(item_id=item["item"], score=item["score"]) for item in items])


def _timestamp(time_us: int) -> Timestamp:
    stamp = Timestamp()
    stamp.FromMicroseconds(time_us)
    return stamp


async def _abort(context: Context, error: GatewayError) -> NoReturn:
    code = _CODES.get(type(error), (grpc.StatusCode.INTERNAL, 500))[0]
    await context.abort(code, error.message, status_details(code, error.message, error.field))
