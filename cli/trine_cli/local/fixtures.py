"""pytest plugin: real Redis, Kafka, TorchServe and Spark for integration tests.

Shared ones live as long as the pytest session; a test gets a part of them that is its own (an empty database, a fresh
topic). Tests that stop, pause or kill a server make their own with the `private_*` factories.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest
import redis

from models.torchserve.server import JAVA_OPTIONS
from trine_cli.local.kafka_broker import KafkaBroker
from trine_cli.local.redis_server import RedisServer
from trine_cli.local.topics import create_topics
from trine_cli.local.torchserve import TorchServe

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

#: Partitions of Trine's topics here: each costs the broker and whoever follows them. (`trine up` has 64 of its own.)
SHARDS = 8

# The better compiler would work longer than what it makes.
_QUICK_JAVA = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")
_databases = itertools.count()
#: The last ones are for fixtures that outlive a test.
_KEPT = 16


class PrivateRedis(Protocol):
    """Starts a Redis of the test's own; keyword arguments as RedisServer's, `folder` too."""

    def __call__(self, **options: Any) -> RedisServer: ...  # options of three constructors, checked by them


class KeptDatabase(Protocol):
    """URL of a Redis database, empty, that nobody else has."""

    def __call__(self) -> str: ...


class PrivateKafka(Protocol):
    """Starts a Kafka of the test's own; `shards`: partitions of Trine's topics, 0 for none of them."""

    def __call__(self, shards: int = SHARDS, **options: Any) -> KafkaBroker: ...


class PrivateTorchServe(Protocol):
    """Starts a TorchServe of the test's own; keyword arguments as TorchServe's."""

    def __call__(self, **options: Any) -> TorchServe: ...


class NewTopics(Protocol):
    """Creates topics with names of their own, `partitions` each, on the shared Kafka; returns the names."""

    def __call__(self, count: int = 1, partitions: int = 4) -> tuple[str, ...]: ...


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """The session's Redis. Do not stop it; take `private_redis` for that."""
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def redis_url(redis_server: RedisServer) -> str:
    """URL of a database of the shared Redis, empty at the start of the test."""
    url = redis_server.database(next(_databases) % (redis_server.databases - _KEPT))
    with redis.Redis.from_url(url) as client:
        client.flushdb()
    return url


@pytest.fixture(scope="session")
def kept_database(redis_server: RedisServer) -> KeptDatabase:
    """Gives databases of the shared Redis to fixtures that outlive a test: each its own, never given again."""
    numbers = iter(range(redis_server.databases - 1, redis_server.databases - 1 - _KEPT, -1))

    def take() -> str:
        number = next(numbers, None)
        assert number is not None, f"more than {_KEPT} databases are kept"
        return redis_server.database(number)

    return take


@pytest.fixture(scope="session")
def kafka_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaBroker]:
    """The session's Kafka, with Trine's topics (SHARDS partitions). Do not stop it; take `private_kafka` for that."""
    with KafkaBroker(tmp_path_factory.mktemp("kafka")) as broker:
        broker.create_topics(SHARDS)
        yield broker


@pytest.fixture(scope="session")
def kafka_bootstrap(kafka_broker: KafkaBroker) -> str:
    """HOST:PORT of the shared Kafka. Its topics hold what earlier tests wrote: see `new_topics`, `private_kafka`."""
    return kafka_broker.bootstrap


@pytest.fixture
def new_topics(kafka_bootstrap: str) -> NewTopics:
    """Makes empty topics on the shared Kafka."""

    def make(count: int = 1, partitions: int = 4) -> tuple[str, ...]:
        names = tuple(f"test-{uuid.uuid4().hex[:12]}" for _ in range(count))
        create_topics(kafka_bootstrap, partitions, names=names)
        return names

    return make


@pytest.fixture(scope="session")
def torchserve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TorchServe]:
    """The session's TorchServe, without models: a test unregisters what it registers."""
    with TorchServe(tmp_path_factory.mktemp("torchserve"), java_options=(*JAVA_OPTIONS, *_QUICK_JAVA)) as server:
        yield server


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    """The session of this process, which jobs that run in it use too; tasks are tried again as in production."""
    from feature_store.spark_session import spark_session

    from trine_cli.local.spark_classes import shared_classes

    conf = {
        "spark.sql.shuffle.partitions": "2",  # the data are small, a task is not for nothing
        "spark.python.daemon.module": "batch_scorer.python_daemon",
    }
    with pytest.MonkeyPatch.context() as patch:
        # Of this JVM, and of those of jobs that tests start as processes of their own.
        patch.setenv("SPARK_SUBMIT_OPTS", shared_classes())
        with pytest.MonkeyPatch.context() as start:
            start.setenv("JAVA_TOOL_OPTIONS", " ".join(_QUICK_JAVA))
            session = spark_session("tests", tmp_path_factory.mktemp("spark"), "local[2,4]", "1g", conf)
        yield session
        session.stop()


@pytest.fixture
def private_redis(tmp_path: Path) -> Iterator[PrivateRedis]:
    """Makes Redis servers for this test alone."""
    count = itertools.count()
    with ExitStack() as servers:

        def make(**options: Any) -> RedisServer:
            folder = options.pop("folder", None) or tmp_path / f"redis-{next(count)}"
            return servers.enter_context(RedisServer(folder, **options))

        yield make


@pytest.fixture
def private_kafka(tmp_path: Path) -> Iterator[PrivateKafka]:
    """Makes Kafka brokers for this test alone."""
    count = itertools.count()
    with ExitStack() as servers:

        def make(shards: int = SHARDS, **options: Any) -> KafkaBroker:
            folder = options.pop("folder", None) or tmp_path / f"kafka-{next(count)}"
            broker = servers.enter_context(KafkaBroker(folder, **options))
            if shards:
                broker.create_topics(shards)
            return broker

        yield make


@pytest.fixture
def private_torchserve(tmp_path: Path) -> Iterator[PrivateTorchServe]:
    """Makes TorchServe servers for this test alone."""
    count = itertools.count()
    with ExitStack() as servers:

        def make(**options: Any) -> TorchServe:
            folder = options.pop("folder", None) or tmp_path / f"torchserve-{next(count)}"
            java_options = options.pop("java_options", (*JAVA_OPTIONS, *_QUICK_JAVA))
            return servers.enter_context(TorchServe(folder, java_options=java_options, **options))

        yield make
