"""Where the logs end: the next offset of every shard's partition, asked of Kafka."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]
from service_kit.logs import get_logger

UNKNOWN = -1
_REQUEST_TIMEOUT_S = 3.0
#: Younger answers are given again, so that many readers cost Kafka no more than one.
_KEPT_S = 0.5

log = get_logger(__name__)


def report_error(error: KafkaError) -> None:
    """librdkafka's own news; it goes on trying by itself."""
    log.info("kafka", error=error.str())


class LogEnds:
    """Blocking; callable from any thread."""

    def __init__(self, bootstrap: str, topics: Sequence[str], shards: int) -> None:
        config: dict[str, Any] = {
            "bootstrap.servers": bootstrap,
            "error_cb": report_error,
        }  # as confluent-kafka types it
        self._admin = AdminClient(config)
        self._asked = [TopicPartition(topic, shard) for topic in topics for shard in range(shards)]
        self._lock = threading.Lock()
        self._found: dict[tuple[str, int], int] = {}
        self._at = float("-inf")
        self.problem: str | None = None

    def read(self) -> dict[tuple[str, int], int]:
        """(topic, partition) → next offset; empty where Kafka does not say (`problem` is why)."""
        with self._lock:
            if time.monotonic() - self._at > _KEPT_S:
                try:
                    self._found, self.problem = self._ask(), None
                except KafkaException as error:
                    self._found, self.problem = {}, f"log ends: {error}"
                self._at = time.monotonic()
            return self._found

    def _ask(self) -> dict[tuple[str, int], int]:
        latest = OffsetSpec.latest()  # type: ignore[no-untyped-call]
        futures = self._admin.list_offsets(dict.fromkeys(self._asked, latest), request_timeout=_REQUEST_TIMEOUT_S)
        return {(at.topic, at.partition): future.result().offset for at, future in futures.items()}
