"""How this worker talks to Kafka: client settings, topic ids, and the errors that mean 'later' or 'never'.

Both consumer groups assign cooperatively: when a worker comes or goes, the others go on with the shards they keep,
and only a shard that moves is claimed in Redis anew. Eager assignment would stop all 128 of them each time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient
from service_kit.logs import get_logger

from stream_worker.settings import WorkerSettings

log = get_logger(__name__)

REQUEST_TIMEOUT_S = 4.0
DELIVERY_TIMEOUT_S = 10.0
ClientConfig = dict[str, Any]  # as confluent-kafka declares it


class TopicsMissing(Exception):
    """Topics that are not there, or not with as many partitions as there are shards."""


def report_error(error: KafkaError) -> None:
    """librdkafka's own news; it goes on trying by itself."""
    log.warning("kafka", error=error.str(), code=error.name())


def consumer_config(settings: WorkerSettings, group: str) -> ClientConfig:
    """Offsets are given by us at each assignment, never by `auto.offset.reset`."""
    config: ClientConfig = {
        **settings.kafka_client,
        "group.id": f"{settings.group_prefix}-{group}",
        "client.id": settings.worker_id,
        "partition.assignment.strategy": "cooperative-sticky",
        "isolation.level": "read_committed",
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "auto.offset.reset": "error",
        "enable.partition.eof": True,
        "session.timeout.ms": settings.session_timeout_ms,
        "heartbeat.interval.ms": max(settings.session_timeout_ms // 5, 200),
        "max.poll.interval.ms": max(60_000, settings.session_timeout_ms),
        # One thread serves hundreds of partitions: few large fetches, and a bounded queue of 32 MB. A fetch names all
        # of them, so that one for every message would keep the broker busy; 50 ms is the most that this waits.
        "fetch.wait.max.ms": 50,
        "fetch.min.bytes": 65_536,
        "fetch.message.max.bytes": 1_048_576,
        "queued.min.messages": 50_000,
        "queued.max.messages.kbytes": 32_768,
        "topic.metadata.refresh.interval.ms": 30_000,
        "error_cb": report_error,
    }
    if settings.static_membership:
        config["group.instance.id"] = settings.worker_id
    return config


def archive_consumer_config(settings: WorkerSettings, group: str) -> ClientConfig:
    """As `consumer_config`, in no hurry: few and large fetches."""
    return {
        **consumer_config(settings, group),
        "fetch.wait.max.ms": 500,
        "fetch.min.bytes": 1_048_576,
        "max.poll.interval.ms": max(300_000, settings.session_timeout_ms),
    }


def onlooker(settings: WorkerSettings, group: str) -> Consumer:
    """A consumer that reads what the group has committed, and never joins it.

    (The admin client could too, but its error path crashes where the broker has no coordinator yet.)
    """
    config: ClientConfig = {
        **settings.kafka_client,
        "group.id": f"{settings.group_prefix}-{group}",
        "client.id": settings.worker_id,
        # Transactions still open are none of its business.
        "isolation.level": "read_uncommitted",
        "enable.auto.commit": False,
        "error_cb": report_error,
    }
    return Consumer(config)


def producer_config(settings: WorkerSettings) -> ClientConfig:
    return {
        **settings.kafka_client,
        "client.id": settings.worker_id,
        "enable.idempotence": True,
        "acks": "all",
        "compression.type": "lz4",
        "linger.ms": 0,
        "error_cb": report_error,
    }


def admin_client(settings: WorkerSettings) -> AdminClient:
    config: ClientConfig = {
        **settings.kafka_client,
        "client.id": settings.worker_id,
        "error_cb": report_error,
    }
    return AdminClient(config)


def topic_ids(admin: AdminClient, topics: Iterable[str], shards: int | None = None) -> dict[str, str]:
    """Kafka's own id of each topic: another one under the same name means that it was made anew.

    Raises TopicsMissing, and KafkaException where Kafka does not answer.
    """
    names = list(topics)
    found: dict[str, str] = {}
    for name, future in admin.describe_topics(TopicCollection(names), request_timeout=REQUEST_TIMEOUT_S).items():
        try:
            described = future.result()
        except KafkaException as error:
            if error.args[0].code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise TopicsMissing(f"topic {name} does not exist; it should have {shards} partitions") from error
            raise
        count = len(described.partitions)
        if shards is not None and count != shards:
            raise TopicsMissing(
                f"topic {name} has {count} partitions; it should have as many as there are shards, {shards}"
            )
        found[name] = str(described.topic_id)
    return found


def described(admin: AdminClient, names: Sequence[str]) -> tuple[dict[str, tuple[str, int]], list[str]]:
    """Kafka's own id and number of partitions of each topic, and those that do not exist. Raises KafkaException."""
    found: dict[str, tuple[str, int]] = {}
    missing: list[str] = []
    asked = admin.describe_topics(TopicCollection(list(names)), request_timeout=REQUEST_TIMEOUT_S)
    for name, future in asked.items():
        try:
            topic = future.result()
        except KafkaException as error:
            if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise
            missing.append(name)
        else:
            found[name] = str(topic.topic_id), len(topic.partitions)
    return found, missing


def partitions(topics: Sequence[str], shards: int) -> list[tuple[str, int]]:
    return [(topic, p) for topic in topics for p in range(shards)]
