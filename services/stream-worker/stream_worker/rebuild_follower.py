"""While there is a version that a rebuild has made: follow the logs for it too, until it is served.

It is brought up to date by a state stage and a consumer group of its own, beside those that serve. Both write by the
same rules, each the version of its pointer. When the rebuild moves the pointers Redis refuses both at once:
the stage that serves goes on with the new version from where the other left it, and this one ends. A worker that dies
meanwhile finds the same version at its next start, and goes on from the offsets in Redis.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import redis
from confluent_kafka.admin import AdminClient
from feature_store import keys as names
from feature_store.updates import StateWriter
from service_kit.health import Health
from service_kit.logs import get_logger
from service_kit.metrics import Metrics

from stream_worker import kafka
from stream_worker.progress import ProgressProbe
from stream_worker.settings import WorkerSettings
from stream_worker.state_stage import StateStage
from stream_worker.streams import PlanStreams
from stream_worker.worker_metrics import WorkerMetrics

log = get_logger(__name__)

GROUP = "features-next"


class RebuildFollower:
    """`run` is the body of a thread; nothing else is called by others."""

    def __init__(
        self,
        settings: WorkerSettings,
        streams: PlanStreams,
        client: redis.Redis,
        writer: Callable[[], StateWriter],
        admin: AdminClient,
    ) -> None:
        """`writer` makes a StateWriter of the next version; raises VersionSuperseded when there is none."""
        self._settings, self._streams, self._redis = settings, streams, client
        self._writer, self._admin = writer, admin
        # What this process says of itself is about the version that serves: the other's shards are the same ones.
        self._metrics, self._health = WorkerMetrics(Metrics("worker_next")), Health()

    def run(self, stop: threading.Event) -> None:
        """Look for such a version until `stop`, and follow it."""
        while not stop.wait(self._settings.heartbeat_s):
            try:
                version = self._redis.get(names.NEXT_POINTER)
            except redis.RedisError:
                continue  # the stage that serves says so
            if version is not None:
                log.info("following the next version of the feature state", version=str(version))
                self._follow(stop)
                log.info("the next version is followed no more")

    def _follow(self, stop: threading.Event) -> None:
        over = threading.Event()
        onlooker = kafka.onlooker(self._settings, "rekey")
        probe = ProgressProbe(
            lambda: kafka.admin_client(self._settings),
            onlooker,
            self._streams,
            self._settings.shards,
            self._settings.heartbeat_s,
            self._health,
        )
        prober = threading.Thread(target=probe.run, args=(over,), name="next-progress")
        prober.start()
        try:
            StateStage(
                self._settings,
                self._streams,
                self._writer,
                probe,
                self._admin,
                self._metrics,
                self._health,
                group=GROUP,
                unseen=True,
            ).run(stop)
        finally:
            over.set()
            prober.join()
