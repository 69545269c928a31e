"""Composition root of the feature-store service. `python -m feature_store.service.main`."""

from __future__ import annotations

import sys
from functools import partial

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from service_kit.grpc_server import GrpcServer
from service_kit.http_server import HttpServer
from service_kit.logs import get_logger
from service_kit.run import Lifecycle, StartRefused, run
from trine.features.v1.features_pb2_grpc import add_FeatureStoreServiceServicer_to_server

from feature_store.definitions import FeaturePlan
from feature_store.online import OnlineFeatures, StoreMisconfigured
from feature_store.service.core import FeatureService
from feature_store.service.dead_letters import DeadLetterCounter
from feature_store.service.freshness import FreshnessReader
from feature_store.service.grpc_service import SERVICE, FeatureStoreServicer
from feature_store.service.log_ends import LogEnds
from feature_store.service.rest_service import build_app
from feature_store.service.service_metrics import ServiceMetrics
from feature_store.service.settings import FeatureServiceSettings
from feature_store.service.shown_plan import NoPlan, shown_plan

log = get_logger(__name__)


def plan_of(settings: FeatureServiceSettings) -> FeaturePlan:
    """What is shown. Raises StartRefused."""
    timeout_s = settings.redis_timeout_ms / 1_000
    options = {"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s}
    try:
        with redis.Redis.from_url(settings.redis_url, retry=Retry(NoBackoff(), 0), **options) as client:
            return shown_plan(settings.releases, settings.release, client)
    except NoPlan as error:
        raise StartRefused(f"releases: {error}") from error


async def start(life: Lifecycle, settings: FeatureServiceSettings) -> None:
    plan = plan_of(settings)
    metrics = ServiceMetrics(life.metrics)
    topics = [plan.topic_of(entity.name) for entity in plan.entities]
    ends = LogEnds(settings.kafka_client, topics, settings.shards, settings.refresh_s)
    life.thread("log-ends", ends.run, deadline_s=10)
    letters = DeadLetterCounter(settings.kafka_client, settings.dead_letters_topic, metrics.dead_letters)
    life.thread("dead-letters", letters.run, deadline_s=10)
    timeout_s = settings.redis_timeout_ms / 1_000
    service = FeatureService(
        plan,
        settings.shards,
        partial(OnlineFeatures.connect, settings.redis_url, plan, settings.shards, timeout_s=timeout_s),
        FreshnessReader(settings.redis_url, plan, settings.shards, ends, timeout_s),
        letters,
        life.health,
        metrics,
    )
    life.on_stop("redis", service.close)

    try:
        await service.look()
    except StoreMisconfigured as error:
        raise StartRefused(str(error)) from error
    life.task("watch", service.watch(settings.refresh_s))

    add = partial(add_FeatureStoreServiceServicer_to_server, FeatureStoreServicer(service, metrics))
    grpc = GrpcServer(
        {SERVICE: add},
        life.health,
        settings.grpc_port,
        settings.host,
        max_connection_age_s=settings.max_connection_age_s,
        max_message_bytes=1 << 20,
    )
    app = build_app(service, life.health, life.metrics, metrics)
    http = HttpServer(app, settings.rest_port, settings.host)
    await http.start()
    life.on_stop("rest", http.stop, deadline_s=8)
    await grpc.start()
    life.on_stop("grpc", grpc.stop, deadline_s=8)
    log.info("listening", grpc_port=grpc.port, rest_port=http.port, model=plan.model)


def main() -> int:
    return run("features", start, FeatureServiceSettings)


if __name__ == "__main__":
    sys.exit(main())
