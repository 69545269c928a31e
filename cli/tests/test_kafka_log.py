"""Whole topics read from a real Kafka: to their end as of now, committed messages alone."""

from __future__ import annotations

import pytest
from confluent_kafka import Producer
from trine_cli.errors import Unavailable
from trine_cli.kafka_log import KafkaLog
from trine_cli.local.fixtures import NewTopics
from trine_cli.local.ports import HOST, free_port


def _written(bootstrap: str, topic: str, values: list[bytes], partitions: int = 4) -> None:
    producer = Producer({"bootstrap.servers": bootstrap})
    for i, value in enumerate(values):
        producer.produce(topic, value, partition=i % (partitions - 1))  # the last partition stays empty
    assert producer.flush(20) == 0


def test_every_message_in_order_and_where_partitions_end(kafka_bootstrap: str, new_topics: NewTopics) -> None:
    (topic,) = new_topics(1, partitions=4)
    values = [b"%d" % i for i in range(1_000)]
    _written(kafka_bootstrap, topic, values)
    log = KafkaLog(kafka_bootstrap)
    ends: dict[int, int] = {}
    found: dict[int, list[bytes]] = {}
    for message in log.read(topic, ends=ends):
        found.setdefault(message.partition() or 0, []).append(message.value() or b"")
    assert found == {p: values[p::3] for p in range(3)}
    assert ends == {0: 334, 1: 333, 2: 333, 3: 0} == log.ends(topic)
    assert log.describe(topic).partitions == 4
    assert len(log.describe(topic).topic_id) > 10


def test_what_comes_after_the_asked_end_is_left_out(kafka_bootstrap: str, new_topics: NewTopics) -> None:
    (topic,) = new_topics(1, partitions=4)
    _written(kafka_bootstrap, topic, [b"early"] * 7)
    log = KafkaLog(kafka_bootstrap)
    until = log.ends(topic)
    _written(kafka_bootstrap, topic, [b"late"] * 500)
    assert [m.value() for m in log.read(topic, until)] == [b"early"] * 7


def test_aborted_messages_are_not_there(kafka_bootstrap: str, new_topics: NewTopics) -> None:
    (topic,) = new_topics(1, partitions=2)
    producer = Producer({"bootstrap.servers": kafka_bootstrap, "transactional.id": f"{topic}-writer"})
    producer.init_transactions(30)
    for word, commit in ((b"aborted", False), (b"kept", True), (b"aborted", False)):
        producer.begin_transaction()
        for _ in range(5):
            producer.produce(topic, word, partition=0)
        producer.flush(20)
        if commit:
            producer.commit_transaction(30)
        else:
            producer.abort_transaction(30)
    ends: dict[int, int] = {}
    assert [m.value() for m in KafkaLog(kafka_bootstrap).read(topic, ends=ends)] == [b"kept"] * 5
    assert ends == {0: 18, 1: 0}  # each transaction's end takes an offset too


def test_no_topic_and_no_kafka_are_told(kafka_bootstrap: str) -> None:
    with pytest.raises(Unavailable, match="no-such-topic"):
        KafkaLog(kafka_bootstrap).describe("no-such-topic")
    with pytest.raises(Unavailable, match=r"Kafka (at|answers at)"):
        list(KafkaLog(f"{HOST}:{free_port()}", patience_s=2).read("any"))
