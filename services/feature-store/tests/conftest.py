"""One Spark for the whole session."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from feature_store.spark_session import spark_session
from pyspark.sql import SparkSession


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    few = {"spark.sql.shuffle.partitions": "2"}  # the data are small, a task is not for nothing
    session = spark_session("tests", tmp_path_factory.mktemp("spark"), "local[2]", conf=few)
    yield session
    session.stop()
