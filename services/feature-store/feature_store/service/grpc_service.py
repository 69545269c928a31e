"""gRPC in front of the feature service: trine.features.v1.FeatureStoreService."""

from __future__ import annotations

from typing import NoReturn, TypeVar

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from service_kit.problems import status_details
from trine.features.v1 import features_pb2 as pb
from trine.features.v1 import features_pb2_grpc

from feature_store.definitions import MICROSECONDS_PER_SECOND, FeatureView
from feature_store.service.core import FeatureService
from feature_store.service.errors import FeatureServiceError, InvalidField, StateUnavailable, UnknownView
from feature_store.service.freshness import ShardFreshness
from feature_store.service.service_metrics import ServiceMetrics

SERVICE = pb.DESCRIPTOR.services_by_name["FeatureStoreService"].full_name
_CODES: dict[type[FeatureServiceError], grpc.StatusCode] = {
    InvalidField: grpc.StatusCode.INVALID_ARGUMENT,
    UnknownView: grpc.StatusCode.NOT_FOUND,
    StateUnavailable: grpc.StatusCode.UNAVAILABLE,
}
Asked = TypeVar("Asked")
Given = TypeVar("Given")
_MAX_UINT32 = 2**32 - 1


class FeatureStoreServicer(features_pb2_grpc.FeatureStoreServiceServicer):
    """Add it with `add_FeatureStoreServiceServicer_to_server`."""

    def __init__(self, service: FeatureService, metrics: ServiceMetrics) -> None:
        self._service, self._metrics = service, metrics

    async def ListViews(
        self,
        request: pb.ListViewsRequest,
        context: grpc.aio.ServicerContext[pb.ListViewsRequest, pb.ListViewsResponse],
    ) -> pb.ListViewsResponse:
        with self._metrics.observed("ListViews"):
            views = [_view(view, self._service.fingerprint) for view in self._service.views()]
            return pb.ListViewsResponse(views=views)

    async def GetFeatures(
        self,
        request: pb.GetFeaturesRequest,
        context: grpc.aio.ServicerContext[pb.GetFeaturesRequest, pb.GetFeaturesResponse],
    ) -> pb.GetFeaturesResponse:
        try:
            with self._metrics.observed("GetFeatures"):
                as_of_us = _microseconds(request.as_of) if request.HasField("as_of") else None
                found = await self._service.features(request.view, list(request.keys), as_of_us)
        except FeatureServiceError as error:
            await _abort(context, error)
        return pb.GetFeaturesResponse(
            entities=[
                pb.EntityFeatures(key=e.key, features=e.features, known=e.known, feature_lag_ms=_uint32(e.lag_ms))
                for e in found
            ]
        )

    async def GetFreshness(
        self,
        request: pb.GetFreshnessRequest,
        context: grpc.aio.ServicerContext[pb.GetFreshnessRequest, pb.GetFreshnessResponse],
    ) -> pb.GetFreshnessResponse:
        try:
            with self._metrics.observed("GetFreshness"):
                shards, letters = await self._service.freshness()
        except FeatureServiceError as error:
            await _abort(context, error)
        return pb.GetFreshnessResponse(shards=[_freshness(shard) for shard in shards], dead_letters=letters)


def _view(view: FeatureView, fingerprint: str) -> pb.View:
    return pb.View(
        name=view.name,
        entity=view.entity.name,
        source=view.source.name,
        features=view.features,
        windows_seconds=[us // MICROSECONDS_PER_SECOND for us in view.windows_us],
        delay_seconds=view.delay_us // MICROSECONDS_PER_SECOND,
        lateness_seconds=view.lateness_us // MICROSECONDS_PER_SECOND,
        storage=view.storage,
        fingerprint=fingerprint,
    )


def _freshness(shard: ShardFreshness) -> pb.ShardFreshness:
    return pb.ShardFreshness(
        entity=shard.entity,
        shard=shard.shard,
        topic=shard.topic,
        offset=shard.offset,
        log_end_offset=shard.log_end_offset,
        event_clock=_timestamp(shard.clock_us) if shard.clock_us >= 0 else None,
        lag_ms=_MAX_UINT32 if shard.lag_ms < 0 else _uint32(shard.lag_ms),
    )


def _microseconds(time: Timestamp) -> int:
    """Raises InvalidField. Finer than a microsecond is cut off."""
    if not 0 <= time.nanos < 1_000_000_000:
        raise InvalidField("as_of", f"has {time.nanos} nanos; must be 0 to 999,999,999")
    return time.seconds * MICROSECONDS_PER_SECOND + time.nanos // 1_000


def _timestamp(time_us: int) -> Timestamp:
    return Timestamp(seconds=time_us // MICROSECONDS_PER_SECOND, nanos=time_us % MICROSECONDS_PER_SECOND * 1_000)


def _uint32(value: int) -> int:
    return min(value, _MAX_UINT32)


async def _abort(context: grpc.aio.ServicerContext[Asked, Given], error: FeatureServiceError) -> NoReturn:
    code = _CODES[type(error)]
    await context.abort(code, error.message, status_details(code, error.message, error.field))
