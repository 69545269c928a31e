"""REST in front of the feature service: the same answers as gRPC, errors as problem+json, OpenAPI page at /docs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import FastAPI, Request, Response
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StrictStr
from service_kit.health import Health
from service_kit.http_server import health_router
from service_kit.metrics import Metrics
from service_kit.problems import ProblemBody, answer_with_problems, problem

from feature_store.definitions import MICROSECONDS_PER_SECOND
from feature_store.service.core import MAX_KEYS, FeatureService
from feature_store.service.errors import FeatureServiceError, InvalidField, StateUnavailable, UnknownView
from feature_store.service.service_metrics import ServiceMetrics

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MAX_BODY_BYTES = 128 * 1024
_STATUSES: dict[type[FeatureServiceError], int] = {InvalidField: 422, UnknownView: 404, StateUnavailable: 503}
_RESPONSES = {404: "No such view", 422: "A field is wrong; `field` names it", 503: "State unavailable"}


class ViewBody(BaseModel):
    """A feature view as the release declares it; spans in seconds."""

    name: str
    entity: str
    source: str
    features: list[str]
    windows_seconds: list[int]
    delay_seconds: int
    lateness_seconds: int
    storage: str
    fingerprint: str


class ViewsBody(BaseModel):
    views: list[ViewBody]


class FeaturesQuery(BaseModel):
    """Which entities of which view, as of when."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"view": "customer", "keys": ["4711"], "as_of": "2018-07-25T14:00:00Z"}]},
    )

    view: StrictStr
    keys: Annotated[list[StrictStr], Field(description=f"1 to {MAX_KEYS:,} entity keys")]
    as_of: Annotated[AwareDatetime | None, Field(description="RFC 3339; now where not given")] = None


class EntityBody(BaseModel):
    """`known`: the entity has history; without it all features are zero."""

    key: str
    features: dict[str, float]
    known: bool
    feature_lag_ms: int


class FeaturesBody(BaseModel):
    entities: list[EntityBody]


class ShardBody(BaseModel):
    """`offset`: next log entry to absorb; null where the shard has no state, `log_end_offset` where Kafka is silent."""

    entity: str
    shard: int
    topic: str
    offset: int | None
    log_end_offset: int | None
    event_clock: datetime | None
    lag_ms: int | None


class FreshnessBody(BaseModel):
    shards: list[ShardBody]
    dead_letters: Annotated[dict[str, int], Field(description="Reason to number of letters")]


def build_app(service: FeatureService, health: Health, metrics: Metrics, observed: ServiceMetrics) -> FastAPI:
    """The REST app: views, features, freshness, /livez, /readyz, /metrics."""
    app = FastAPI(title="Trine feature store", version="1", redoc_url=None)
    app.include_router(health_router(health, metrics))
    answer_with_problems(app, _MAX_BODY_BYTES)
    problems: dict[int | str, dict[str, Any]] = {  # as FastAPI types it
        code: {"model": ProblemBody, "description": text} for code, text in _RESPONSES.items()
    }

    @app.exception_handler(FeatureServiceError)
    async def refused(_: Request, error: FeatureServiceError) -> Response:
        return problem(_STATUSES[type(error)], error.message, error.field)

    @app.get("/v1/views", summary="Every feature view", tags=["features"])
    async def views() -> ViewsBody:
        with observed.observed("views"):
            return ViewsBody(
                views=[
                    ViewBody(
                        name=view.name,
                        entity=view.entity.name,
                        source=view.source.name,
                        features=list(view.features),
                        windows_seconds=[us // MICROSECONDS_PER_SECOND for us in view.windows_us],
                        delay_seconds=view.delay_us // MICROSECONDS_PER_SECOND,
                        lateness_seconds=view.lateness_us // MICROSECONDS_PER_SECOND,
                        storage=view.storage,
                        fingerprint=service.fingerprint,
                    )
                    for view in service.views()
                ]
            )

    @app.post("/v1/features:get", summary="Features of entities", tags=["features"], responses=problems)
    async def features(query: FeaturesQuery) -> FeaturesBody:
        with observed.observed("features"):
            as_of_us = None if query.as_of is None else (query.as_of - _EPOCH) // timedelta(microseconds=1)
            found = await service.features(query.view, query.keys, as_of_us)
            return FeaturesBody(
                entities=[
                    EntityBody(key=e.key, features=e.features, known=e.known, feature_lag_ms=e.lag_ms) for e in found
                ]
            )

    @app.get("/v1/freshness", summary="Progress of every shard; dead letters", tags=["features"])
    async def freshness() -> FreshnessBody:
        with observed.observed("freshness"):
            shards, letters = await service.freshness()
            return FreshnessBody(
                shards=[
                    ShardBody(
                        entity=s.entity,
                        shard=s.shard,
                        topic=s.topic,
                        offset=_or_null(s.offset),
                        log_end_offset=_or_null(s.log_end_offset),
                        event_clock=None if s.clock_us < 0 else _EPOCH + timedelta(microseconds=s.clock_us),
                        lag_ms=_or_null(s.lag_ms),
                    )
                    for s in shards
                ],
                dead_letters=letters,
            )

    return app


def _or_null(value: int) -> int | None:
    return None if value < 0 else value
