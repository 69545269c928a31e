"""Hands messages to Kafka: idempotent, acknowledged by all replicas, kept in order, retried for as long as it takes.

librdkafka sends from its own threads; its callbacks run in `poll`, which the event loop calls. What the queue cannot
take is refused at once (`send` says False): the spool has it, and the recorder sends it later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka import Message as KafkaMessage
from service_kit.logs import get_logger

from inference_gateway.spool_format import Message

SCHEMA = b"1"
OnDelivery = Callable[[KafkaError | None, KafkaMessage], None]

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic and the full name of the protobuf message it carries."""

    name: str
    message: str


class TopicMismatch(Exception):
    """A topic has another number of partitions than the gateway has shards: keys would go to wrong shards."""


class KafkaProducer:
    """`client`: broker addresses and what they ask for. `topics[i]` is where `Message(topic=i)` goes."""

    def __init__(
        self, client: Mapping[str, str], topics: Sequence[Topic], *, linger_ms: int = 10, queue_bytes: int = 32 << 20
    ) -> None:
        self.topics = tuple(topics)
        self._names = [t.name for t in topics]
        self._headers: list[list[tuple[str, str | bytes | None]]] = [
            [("trine-type", t.message.encode()), ("trine-schema", SCHEMA)] for t in topics
        ]
        self._config: dict[str, str | int | float | bool | Callable[[KafkaError], None]] = {
            **client,
            "client.id": "trine-gateway",
            "enable.idempotence": True,
            "acks": "all",
            # Never given up: the spool's limit bounds what waits.
            "message.timeout.ms": 0,
            "linger.ms": linger_ms,
            "compression.type": "lz4",
            "queue.buffering.max.messages": 100_000,
            "queue.buffering.max.kbytes": queue_bytes >> 10,
            "reconnect.backoff.ms": 50,
            "retry.backoff.ms": 50,
            "retry.backoff.max.ms": 500,
            "socket.keepalive.enable": True,
            "error_cb": self._on_error,
        }
        self._producer = Producer(self._config, logger=_KafkaLog())
        self.down: str | None = None
        """Why no broker can be reached; None while one can or nothing is known."""

    def send(self, message: Message, on_delivery: OnDelivery) -> bool:
        """Queue a message; False where the queue is full. `on_delivery` is called by a later `poll`."""
        topic, partition, key, value = message
        try:
            self._producer.produce(
                self._names[topic], value, key, partition, on_delivery=on_delivery, headers=self._headers[topic]
            )
        except BufferError:
            return False
        except KafkaException as error:
            log.error("message refused by the Kafka client", topic=self._names[topic], reason=str(error))
            return False
        return True

    def poll(self) -> int:
        """Run the callbacks that are due; never waits."""
        return self._producer.poll(0)

    @property
    def queued(self) -> int:
        """Messages without an answer from Kafka."""
        return len(self._producer)

    def flush(self, timeout_s: float) -> int:
        """Wait for answers; how many are still missing after `timeout_s`. Blocks: call it off the event loop."""
        return self._producer.flush(timeout_s)

    def renew(self) -> None:
        """Drop everything queued and start with a fresh client: the way out of a fatal error."""
        self._producer.purge()
        self._producer.poll(0)
        self._producer = Producer(self._config, logger=_KafkaLog())
        self.down = None

    def delivered(self) -> None:
        """Something arrived, so a broker is there."""
        self.down = None

    def check_topics(self, shards: int, timeout_s: float) -> bool:
        """Whether every topic could be seen with `shards` partitions; False where Kafka cannot be reached. Blocks.

        Raises TopicMismatch.
        """
        try:
            known = self._producer.list_topics(timeout=timeout_s).topics
        except KafkaException:
            return False
        for name in self._names:
            found = len(known[name].partitions) if name in known else 0
            if found not in (0, shards):
                raise TopicMismatch(f"topic {name} has {found} partitions, the gateway is set to {shards} shards")
            if not found:
                return False
        return True

    def _on_error(self, error: KafkaError) -> None:
        if error.code() in (KafkaError._ALL_BROKERS_DOWN, KafkaError._TRANSPORT, KafkaError._RESOLVE):
            self.down = error.str()


class _KafkaLog:
    """librdkafka's log lines as ours; a broker that is away is told by health, not by a line a second."""

    def log(self, level: int, text: str, *values: object) -> None:
        log.debug("kafka client", text=text % values if values else text)
