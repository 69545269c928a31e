"""Where the logs end: the next offset of every shard's partition, asked of Kafka."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]
from service_kit.logs import get_logger

UNKNOWN = -1
_REQUEST_TIMEOUT_S = 3.0

log = get_logger(__name__)


def report_error(error: KafkaError) -> None:
    """librdkafka's own news; it goes on trying by itself."""
    log.info("kafka", error=error.str())


class LogEnds:
    """`run` asks in a thread of its own, so that nobody waits for a Kafka that is silent; `ends` is what it said."""

    def __init__(self, kafka: Mapping[str, str], topics: Sequence[str], shards: int, every_s: float) -> None:
        # Any: as confluent-kafka types it.
        config: dict[str, Any] = {**kafka, "error_cb": report_error}
        self._admin = AdminClient(config)
        self._asked = [TopicPartition(topic, shard) for topic in topics for shard in range(shards)]
        self._every_s = every_s
        #: (topic, partition) → next offset; empty while Kafka does not say.
        self.ends: Mapping[tuple[str, int], int] = {}
        #: Why Kafka does not say; None where it does.
        self.problem: str | None = None

    def run(self, stop: threading.Event) -> None:
        """Ask until `stop` is set."""
        while not stop.is_set():
            try:
                self.ends, self.problem = self._ask(), None
            except KafkaException as error:
                self.ends, self.problem = {}, f"log ends: {error}"
            stop.wait(self._every_s)

    def _ask(self) -> dict[tuple[str, int], int]:
        latest = OffsetSpec.latest()  # type: ignore[no-untyped-call]
        futures = self._admin.list_offsets(dict.fromkeys(self._asked, latest), request_timeout=_REQUEST_TIMEOUT_S)
        return {(at.topic, at.partition): future.result().offset for at, future in futures.items()}
