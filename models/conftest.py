"""One Spark for the models' tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from feature_store.spark_session import spark_session
from pyspark.sql import SparkSession


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    session = spark_session(
        "models", tmp_path_factory.mktemp("spark"), "local[2]", "1g", {"spark.sql.shuffle.partitions": "2"}
    )
    yield session
    session.stop()
