"""Trine's topics on a Kafka: created where missing, checked where they exist. What they hold: docs/events.md."""

from __future__ import annotations

import time
from collections.abc import Mapping

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from trine_cli.local.errors import LocalStackError

TOPICS = (
    "trine.transactions",
    "trine.fraud-reports",
    "trine.by-terminal",
    "trine.decisions",
    "trine.shadow-decisions",
    "trine.dead-letters",
)
# Facts are kept: replay, rebuild and the archive read them from their beginning.
_CONFIG = {"retention.ms": "-1", "message.timestamp.type": "CreateTime", "max.message.bytes": "8388608"}


def create_topics(
    bootstrap: str,
    shards: int = 64,
    timeout_s: float = 30.0,
    names: tuple[str, ...] = TOPICS,
    *,
    client: Mapping[str, str] | None = None,
    replication: int = -1,
    wait_s: float = 5.0,
) -> None:
    """Make sure that every topic of `names` exists with `shards` partitions, and wait until all have a leader.

    `client`: what brokers ask of their clients; `replication`: copies of a partition, -1 for what the broker does by
    itself; `wait_s`: how long the broker may be away at first.
    Raises LocalStackError where a topic exists with another number of partitions (keys would move to other shards),
    or where the broker does not do it in time.
    """
    # Closed at the end: a client left alone would go on looking for a broker that is stopped later.
    with AdminClient({**(client or {}), "bootstrap.servers": bootstrap, "log_level": 0}) as admin:
        try:
            admin.list_topics(timeout=wait_s)
        except KafkaException as error:
            raise LocalStackError(f"no Kafka answers at {bootstrap}: {error.args[0].str()}") from error
        wanted = [NewTopic(name, shards, replication, config=_CONFIG) for name in names]
        for name, result in admin.create_topics(wanted, operation_timeout=timeout_s).items():
            try:
                result.result(timeout_s)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                    raise LocalStackError(f"topic {name} cannot be created on {bootstrap}: {error}") from error
        deadline = time.monotonic() + timeout_s
        while wrong := _not_led(admin, names, shards):
            if time.monotonic() > deadline:
                raise LocalStackError(f"topics without a leader on {bootstrap} after {timeout_s:g} s: {wrong}")
            time.sleep(0.05)


def _not_led(admin: AdminClient, names: tuple[str, ...], shards: int) -> Mapping[str, int]:
    """Topics that still lack leaders, with how many partitions have one."""
    known = admin.list_topics(timeout=10).topics
    wrong: dict[str, int] = {}
    for name in names:
        partitions = known[name].partitions if name in known else {}
        led = sum(partition.leader >= 0 for partition in partitions.values())
        if partitions and len(partitions) != shards:
            raise LocalStackError(
                f"topic {name} has {len(partitions)} partitions, not {shards}: the shard count is fixed"
            )
        if led < shards:
            wrong[name] = led
    return wrong
