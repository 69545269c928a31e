"""One Spark and one small warehouse for the session; each test has a Redis, runs and scratch folders of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import tests.shop_job
from feature_store.spark_session import spark_session
from pyspark import cloudpickle
from pyspark.sql import SparkSession
from tests.batch_scene import Scene, new_scene, write_release, write_warehouse


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    """The session that runs in this process use; tasks are tried again as in production."""
    # Executors do not have the tests on their path.
    cloudpickle.register_pickle_by_value(tests.shop_job)  # type: ignore[no-untyped-call]
    session = spark_session("tests", tmp_path_factory.mktemp("spark"), "local[2,4]")
    yield session
    session.stop()


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `warehouse` and `releases`; not to be changed."""
    folder = tmp_path_factory.mktemp("shop")
    write_warehouse(folder / "warehouse")
    write_release(folder / "releases")
    return folder


@pytest.fixture
def scene(shop: Path, tmp_path: Path, redis_url: str) -> Scene:
    return new_scene(shop, tmp_path, redis_url)
