"""Composition root of the feature-store service. `python -m feature_store.service.main`."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

from service_kit.grpc_server import GrpcServer
from service_kit.http_server import HttpServer
from service_kit.logs import get_logger
from service_kit.run import Lifecycle, StartRefused, run
from trine.features.v1.features_pb2_grpc import add_FeatureStoreServiceServicer_to_server

from feature_store.definitions import DefinitionError, FeaturePlan
from feature_store.online import OnlineFeatures, StoreMisconfigured
from feature_store.service.core import FeatureService
from feature_store.service.dead_letters import DeadLetterCounter
from feature_store.service.freshness import FreshnessReader
from feature_store.service.grpc_service import SERVICE, FeatureStoreServicer
from feature_store.service.log_ends import LogEnds
from feature_store.service.rest_service import build_app
from feature_store.service.service_metrics import ServiceMetrics
from feature_store.service.settings import FeatureServiceSettings

log = get_logger(__name__)


def plan_of(settings: FeatureServiceSettings) -> FeaturePlan:
    """The plan of the release that the settings name, or of the one made last. Raises StartRefused.

    Of a release only the plan is read: this service knows of no model, and verifies none.
    """
    folder = settings.releases
    try:
        named = [folder / settings.release] if settings.release else sorted(p for p in folder.iterdir() if p.is_dir())
        found = [_manifest(path) for path in named if settings.release or (path / "manifest.json").is_file()]
        if not settings.release:
            # Those without a plan, or whose plan no request carries, are for batch jobs alone.
            found = [manifest for manifest in found if manifest.get("plan", {}).get("request_features")]
        if not found:
            raise StartRefused(f"releases: no release in {folder}; make one with `trine train`")
        return FeaturePlan.from_json(max(found, key=lambda manifest: str(manifest.get("created_at", "")))["plan"])
    except (OSError, ValueError, KeyError, DefinitionError) as error:
        raise StartRefused(f"releases: no feature plan found in {folder}: {error!r}") from error


def _manifest(release: Path) -> dict[str, Any]:  # JSON
    found: dict[str, Any] = json.loads((release / "manifest.json").read_bytes())
    return found


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
    grpc = GrpcServer({SERVICE: add}, life.health, settings.grpc_port, settings.host, max_message_bytes=1 << 20)
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
