"""Composition root: builds the gateway, starts it, drains it, stops it. `python -m inference_gateway.main`."""

from __future__ import annotations

import asyncio
import sys

from feature_store.online import OnlineFeatures, StoreMisconfigured, StoreUnavailable
from model_release.errors import ReleaseError
from model_release.release import Release, list_request_releases, open_release
from model_release.rollout import Pointer
from model_release.rollout_store import RolloutStore, process_name, rollout_client
from service_kit.grpc_server import GrpcServer
from service_kit.http_server import HttpServer
from service_kit.logs import get_logger
from service_kit.run import Lifecycle, StartRefused, run
from service_kit.settings import ProcessSettings

from inference_gateway.batch_scores import BatchScores
from inference_gateway.deadline import DeadlinePolicy
from inference_gateway.errors import SpoolError
from inference_gateway.feature_access import FeatureAccess
from inference_gateway.gateway_metrics import GatewayMetrics
from inference_gateway.grpc_service import SERVICE, ScoringService
from inference_gateway.kafka_producer import KafkaProducer, Topic, TopicMismatch
from inference_gateway.model_server import TorchServeClient
from inference_gateway.plans import plan_to_read
from inference_gateway.prediction_reads import PredictionReads
from inference_gateway.prediction_service import SERVICE as PREDICTIONS
from inference_gateway.prediction_service import PredictionServicer, prediction_router
from inference_gateway.reading import Reading
from inference_gateway.recorder import Recorder
from inference_gateway.rest_service import build_app
from inference_gateway.rollout_follower import RolloutFollower, first_pointer
from inference_gateway.scorer import Scorer
from inference_gateway.settings import GatewaySettings
from inference_gateway.shadow import Shadows
from inference_gateway.spool import Spool, adopt_orphans
from inference_gateway.staged import StagedReleases
from inference_gateway.transaction_adapter import DECISION_MESSAGE, TransactionAdapter, UnsupportedPlan

DECISIONS_TOPIC = "trine.decisions"
POINTER_FILE = "pointer.json"
_MAX_UNARY_BYTES = 65_536

log = get_logger(__name__)


async def start(life: Lifecycle, settings: GatewaySettings) -> None:
    """Build and start everything; what is registered last is stopped first."""
    chosen = choose_release(settings)
    rollouts = RolloutStore(rollout_client(settings.redis_url))
    kept = settings.spool_dir / POINTER_FILE
    pointer, found_in = await asyncio.to_thread(first_pointer, rollouts, chosen, kept)
    release = chosen if pointer.current == chosen.id else current_release(settings, pointer)
    log.info("release", current=release.id, generation=pointer.generation, pointer_from=found_in)
    staged = StagedReleases(settings.releases, release.manifest.model, release)
    await asyncio.to_thread(staged.look)
    reading = Reading(await asyncio.to_thread(plan_to_read, release, staged, rollouts), settings)
    plan = reading.plan
    metrics = GatewayMetrics(life.metrics)

    try:
        adapter = TransactionAdapter(plan, settings.shards, live=settings.live)
        index = ProcessSettings().index or 0
        if index == 0 and (files := adopt_orphans(settings.spool_dir, settings.processes)):
            log.info("took over what processes of an earlier run had left", files=files)
        spool = Spool(
            settings.spool_dir / str(index),
            max_bytes=settings.spool_max_bytes,
            segment_bytes=settings.spool_segment_bytes,
        )
    except (UnsupportedPlan, SpoolError) as error:
        raise StartRefused(str(error)) from error
    if spool.damaged:
        log.warning("the spool had torn or damaged bytes, which were skipped", bytes=spool.damaged)
    topics = (Topic(plan.source.topic, plan.source.message), Topic(DECISIONS_TOPIC, DECISION_MESSAGE))
    producer = KafkaProducer(
        settings.kafka_client,
        topics,
        linger_ms=settings.kafka_linger_ms,
        queue_bytes=settings.kafka_queue_bytes,
    )
    await check_topics(producer, settings.shards)
    recorder = Recorder(spool, producer, memory_bytes=settings.recorder_memory_bytes)
    drain_s = settings.spool_drain_s
    life.on_stop("recorder", lambda: recorder.close(drain_s), deadline_s=drain_s + 5.0)
    life.task("recorder", recorder.run())

    store: OnlineFeatures | None = None
    try:
        store = await reading.connect()
    except StoreMisconfigured as error:
        raise StartRefused(str(error)) from error
    except StoreUnavailable as error:
        log.warning("started without features", reason=str(error))
    access = FeatureAccess(reading.connect, life.health, store)
    life.on_stop("features", access.close)

    batch_scores = BatchScores(
        settings.redis_url,
        life.metrics,
        refresh_s=settings.batch_scores_refresh_s,
        max_rows=settings.batch_scores_max_rows,
    )
    server = TorchServeClient(settings.torchserve_grpc)
    scorer = Scorer(
        adapter,
        access,
        server,
        recorder,
        life.health,
        metrics,
        DeadlinePolicy(settings.deadline_ms / 1_000, settings.longest_deadline_ms / 1_000),
        settings.tuning,
        batch_scores,
    )
    shadows = Shadows(
        settings.kafka_client, server, adapter, life.metrics, lambda: scorer.overloaded, max_rows=settings.max_batch
    )
    follower = RolloutFollower(
        process_name(), pointer, reading, access, staged, rollouts, kept, scorer, batch_scores, shadows, life.health,
        metrics, every_s=settings.rollout_refresh_s,
    )  # fmt: skip
    follower.begin(release)
    life.on_stop("model", scorer.close)
    life.on_stop("shadows", shadows.close)
    life.on_stop("report", follower.withdraw)
    life.task("watch", scorer.watch())
    life.task("rollout", follower.follow())
    life.task("batch scores", batch_scores.refresh())
    life.on_stop("scorer", scorer.drain, deadline_s=10.0)

    reads = PredictionReads(settings.redis_url, settings.redis_timeout_ms / 1_000, life.metrics)
    life.on_stop("predictions", reads.close)
    service = ScoringService(
        scorer,
        max_unary_bytes=_MAX_UNARY_BYTES,
        bulk_deadline_s=settings.bulk_deadline_ms / 1_000,
        bulk_window=settings.bulk_window,
    )
    grpc_server = GrpcServer(
        {SERVICE: service.add_to, PREDICTIONS: PredictionServicer(reads).add_to},
        life.health,
        settings.grpc_port,
        settings.host,
        max_message_bytes=settings.max_message_bytes,
        max_connection_age_s=settings.max_connection_age_s,
        keepalive_s=settings.keepalive_s,
    )
    await scorer.warm_up()
    app = build_app(scorer, life.health, life.metrics)
    app.include_router(prediction_router(reads))
    http_server = HttpServer(app, settings.rest_port, settings.host)
    await http_server.start()
    life.on_stop("rest", http_server.stop, deadline_s=8.0)
    await grpc_server.start()
    life.on_stop("grpc", grpc_server.stop, deadline_s=8.0)
    log.info("listening", grpc_port=grpc_server.port, rest_port=http_server.port, release=release.id)


def choose_release(settings: GatewaySettings) -> Release:
    """The release named in the settings, or the youngest that can be opened. Raises StartRefused."""
    named = [settings.releases / settings.release] if settings.release else list_request_releases(settings.releases)
    opened: list[Release] = []
    problems: list[str] = []
    for path in named:
        try:
            opened.append(open_release(path))
        except ReleaseError as error:
            log.error("release refused", release=path.name, reason=str(error))
            problems.append(str(error))
    if not opened:
        raise StartRefused("; ".join(problems) or f"no release in {settings.releases}; make one with `trine train`")
    return max(opened, key=lambda release: release.manifest.created_at)


def current_release(settings: GatewaySettings, pointer: Pointer) -> Release:
    """The release that serves according to the pointer. Raises StartRefused: what was not promoted must not answer."""
    try:
        return open_release(settings.releases / pointer.current)
    except ReleaseError as error:
        raise StartRefused(
            f"{pointer.current} is the current release of {pointer.model} (generation {pointer.generation}) and cannot"
            f" be opened here: {error}; stage it, or promote another where it is staged"
        ) from error


async def check_topics(producer: KafkaProducer, shards: int) -> None:
    """Raises StartRefused where topics have other partitions than `shards`; Kafka may be away."""
    try:
        if not await asyncio.to_thread(producer.check_topics, shards, 2.0):
            log.warning("started without Kafka: events wait in the spool")
    except TopicMismatch as error:
        raise StartRefused(str(error)) from error


if __name__ == "__main__":
    sys.exit(run("gateway", start, GatewaySettings))
