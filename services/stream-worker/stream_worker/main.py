"""Composition root of the stream worker: builds it from its settings, starts it, drains it."""

from __future__ import annotations

import json
import sys
import uuid

import redis
from feature_store import keys as names
from feature_store.definitions import DefinitionError, FeaturePlan
from feature_store.plan_union import fingerprints
from feature_store.source_files import DatasetError
from feature_store.updates import StateWriter
from feature_store.warehouse import Warehouse
from model_release.errors import ReleaseError
from model_release.kept_plan import first_release, kept_plan
from model_release.rollout import Pointer
from model_release.rollout_reporter import keep_reporting
from model_release.rollout_store import WORKER, ProcessReport, RolloutStore, process_name
from redis.backoff import NoBackoff
from redis.retry import Retry
from service_kit.http_server import HttpServer, health_app
from service_kit.logs import get_logger
from service_kit.run import Lifecycle, StartRefused, run
from service_kit.settings import ProcessSettings

from stream_worker import kafka
from stream_worker.archive_compaction import Compaction, CompactionPolicy
from stream_worker.archive_metrics import ArchiveMetrics
from stream_worker.archive_stage import ArchiveStage
from stream_worker.archive_topics import archived_topics
from stream_worker.progress import ProgressProbe
from stream_worker.rebuild_follower import RebuildFollower
from stream_worker.rekey_stage import RekeyStage
from stream_worker.settings import WorkerSettings
from stream_worker.state_stage import StateStage
from stream_worker.streams import PlanStreams, PlanUnsupported
from stream_worker.worker_metrics import WorkerMetrics

log = get_logger(__name__)

# Two busy threads share the interpreter: hand it over soon to the one that comes back from a socket.
SWITCH_INTERVAL_S = 0.001


def plan_of(settings: WorkerSettings, client: redis.Redis | None = None) -> FeaturePlan:
    """The feature plan to run; `client`: where the pointer to the releases in use stands. Raises StartRefused."""
    try:
        if settings.plan_file is not None:
            return FeaturePlan.from_json(json.loads(settings.plan_file.read_text()))
        if settings.releases is None:
            raise StartRefused("set TRINE_WORKER_RELEASES to a folder of releases, or TRINE_WORKER_PLAN_FILE")
        first = first_release(settings.releases, settings.release)
        return kept_plan(settings.releases, first, pointer_of(client, first.manifest.model))
    except (OSError, ValueError, DefinitionError, ReleaseError) as error:
        raise StartRefused(str(error)) from error


def pointer_of(client: redis.Redis | None, model: str) -> Pointer | None:
    """Where the model's pointer stands; None where there is none, or Redis is away."""
    if client is None:
        return None
    try:
        return RolloutStore(client).read(model)
    except redis.RedisError as error:
        log.warning("the pointer to the release in use is not known", reason=str(error))
        return None


def refuse_eviction(client: redis.Redis) -> None:
    """Raises StartRefused where Redis may drop feature state. One that is away is waited for later."""
    try:
        policy = client.config_get("maxmemory-policy").get("maxmemory-policy")
    except redis.RedisError as error:
        log.warning("started without Redis", reason=str(error))
        return
    if policy != "noeviction":
        raise StartRefused(
            f"Redis has maxmemory-policy {policy!r}, which drops feature state when memory is short;"
            " set it to noeviction"
        )


async def start(life: Lifecycle, settings: WorkerSettings) -> None:
    if settings.processes > 1:
        index = ProcessSettings().index or 0
        settings = settings.model_copy(update={"worker_id": f"{settings.worker_id}-{index}"})
    await (start_archive if settings.role == "archive" else start_features)(life, settings)


async def start_features(life: Lifecycle, settings: WorkerSettings) -> None:
    client = redis.Redis.from_url(
        settings.redis_url, socket_timeout=5, socket_connect_timeout=2, retry=Retry(NoBackoff(), 0)
    )
    life.on_stop("redis", client.close)
    refuse_eviction(client)
    plan = plan_of(settings, client)
    try:
        streams = PlanStreams.of(plan)
    except PlanUnsupported as error:
        raise StartRefused(str(error)) from error
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    metrics = WorkerMetrics(life.metrics)
    http = await _http(life, settings)
    admin = kafka.admin_client(settings)
    # Unique to this life: a writer that was killed and one that took its place are not the same.
    owner = f"{settings.worker_id}/{uuid.uuid4().hex[:12]}"
    onlooker = kafka.onlooker(settings, "rekey")
    probe = ProgressProbe(
        lambda: kafka.admin_client(settings), onlooker, streams, settings.shards, settings.heartbeat_s, life.health
    )
    state = StateStage(settings, streams, lambda: StateWriter(client, plan, owner), probe, admin, metrics, life.health)
    report = ProcessReport(WORKER, process_name(), plan.model, keeps=fingerprints(plan))
    life.thread("report", lambda stop: keep_reporting(settings.redis_url, lambda: report, stop), deadline_s=8)
    life.thread("progress", probe.run, deadline_s=15)
    follower = RebuildFollower(
        settings, streams, client, lambda: StateWriter(client, plan, owner, names.NEXT_POINTER), admin
    )
    life.thread("state", state.run, deadline_s=30)
    life.thread("next", follower.run, deadline_s=30)
    if streams.rekeyed:
        life.thread("rekey", RekeyStage(settings, streams, metrics, life.health).run, deadline_s=30)
    log.info("stream worker", worker_id=settings.worker_id, owner=owner, http_port=http.port, model=plan.model)


async def start_archive(life: Lifecycle, settings: WorkerSettings) -> None:
    if not settings.warehouse:
        raise StartRefused("set TRINE_WORKER_WAREHOUSE to the warehouse's folder or URI")
    planned = settings.plan_file is not None or settings.releases is not None
    try:
        topics = archived_topics(plan_of(settings) if planned else None, settings.archive_topics)
        warehouse = Warehouse(settings.warehouse)
    except (PlanUnsupported, DatasetError) as error:
        raise StartRefused(str(error)) from error
    metrics = ArchiveMetrics(life.metrics)
    http = await _http(life, settings)
    admin = kafka.admin_client(settings)
    stage = ArchiveStage(settings, topics, warehouse.store, admin, metrics, life.health)
    if settings.compact_every_s:
        policy = CompactionPolicy(
            settings.compact_files, settings.compact_quiet_s, settings.compact_bytes, settings.compact_grace_s
        )
        compaction = Compaction(warehouse, topics, policy, metrics)
        life.thread("compaction", lambda stop: compaction.run(stop, settings.compact_every_s, stage.owns))
    life.thread("archive", stage.run, deadline_s=60)
    log.info(
        "archive worker",
        worker_id=settings.worker_id,
        http_port=http.port,
        warehouse=warehouse.uri,
        topics=[t.topic for t in topics],
    )


async def _http(life: Lifecycle, settings: WorkerSettings) -> HttpServer:
    app = health_app("Trine stream worker", life.health, life.metrics)
    http = HttpServer(app, settings.metrics_port, settings.host)
    await http.start()
    life.on_stop("http", http.stop)
    return http


def main() -> int:
    return run("worker", start, WorkerSettings)


if __name__ == "__main__":
    sys.exit(main())
