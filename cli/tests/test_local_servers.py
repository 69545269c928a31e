"""The local servers are the real ones: data outlives restarts and kills, and ports that are taken are named."""

from __future__ import annotations

import socket
from pathlib import Path

import httpx
import pytest
import redis
from confluent_kafka import Consumer, Producer, TopicPartition
from trine_cli.local.errors import LocalStackError, PortTaken
from trine_cli.local.fixtures import NewTopics, PrivateKafka, PrivateRedis, PrivateTorchServe
from trine_cli.local.ports import HOST, free_ports
from trine_cli.local.redis_server import RedisServer
from trine_cli.local.topics import TOPICS, create_topics
from trine_cli.local.torchserve import TorchServe


def produce(bootstrap: str, topic: str, values: list[bytes]) -> None:
    producer = Producer({"bootstrap.servers": bootstrap, "acks": "all", "log_level": 0})
    for value in values:
        producer.produce(topic, value, partition=0)
    assert producer.flush(20) == 0


def consume(bootstrap: str, topic: str, count: int) -> list[bytes]:
    consumer = Consumer(
        {"bootstrap.servers": bootstrap, "group.id": "test", "auto.offset.reset": "earliest", "log_level": 0}
    )
    try:
        consumer.assign([TopicPartition(topic, 0, 0)])
        return [message.value() or b"" for message in consumer.consume(count, timeout=20)]
    finally:
        consumer.close()


def test_redis_keeps_data_over_a_restart_and_evicts_nothing(private_redis: PrivateRedis) -> None:
    server = private_redis(appendfsync="always")
    with server.connect() as client:
        client.set("key", "value")
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
    server.restart()
    with server.connect() as client:
        assert client.get("key") == b"value"
    server.kill()
    server.start()
    with server.connect() as client:
        assert client.get("key") == b"value"


def test_shared_redis_gives_every_test_an_empty_database(redis_url: str, redis_server: RedisServer) -> None:
    with redis.Redis.from_url(redis_url) as client:
        assert client.dbsize() == 0
        assert client.connection_pool.connection_kwargs["port"] == redis_server.port


@pytest.mark.timeout(120)
def test_kafka_keeps_data_over_a_restart_and_a_kill(private_kafka: PrivateKafka) -> None:
    broker = private_kafka(shards=4)
    produce(broker.bootstrap, TOPICS[0], [b"1", b"2"])
    broker.restart()
    produce(broker.bootstrap, TOPICS[0], [b"3"])
    broker.kill()
    broker.start()
    broker.create_topics(4)
    assert consume(broker.bootstrap, TOPICS[0], 3) == [b"1", b"2", b"3"]
    with pytest.raises(LocalStackError, match=r"trine.transactions has 4 partitions, not 8"):
        broker.create_topics(8)


def test_new_topics_are_empty_and_have_the_partitions_asked_for(new_topics: NewTopics, kafka_bootstrap: str) -> None:
    first, second = new_topics(2, partitions=3)
    produce(kafka_bootstrap, first, [b"x"])
    assert consume(kafka_bootstrap, first, 1) == [b"x"]
    create_topics(kafka_bootstrap, 3, names=(first, second))
    with pytest.raises(LocalStackError, match="has 3 partitions, not 2"):
        create_topics(kafka_bootstrap, 2, names=(second,))


@pytest.mark.timeout(120)
def test_two_torchserves_side_by_side_with_management_on_loopback(
    torchserve: TorchServe, private_torchserve: PrivateTorchServe
) -> None:
    other = private_torchserve(settings={"job_queue_size": 7})
    for server in (torchserve, other):
        assert server.management_url.startswith(f"http://{HOST}:")
        assert httpx.get(f"{server.management_url}/models").status_code == 200
    assert httpx.get(f"{other.management_url}/models").json() == {"models": []}
    other.restart()
    assert httpx.get(f"{other.inference_url}/ping").json() == {"status": "Healthy"}


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    with socket.socket() as holder:
        holder.bind((HOST, port))
        holder.listen()
        with pytest.raises(PortTaken, match=rf"redis: port {port} is taken by .*\(pid \d+\); choose another"):
            RedisServer(tmp_path, port=port).start()
