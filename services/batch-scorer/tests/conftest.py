"""One small warehouse for the session; each test has a Redis, runs and scratch folders of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import tests.shop_job
from pyspark import cloudpickle
from tests.batch_scene import Scene, new_scene, write_release, write_warehouse

# Executors do not have the tests on their path.
cloudpickle.register_pickle_by_value(tests.shop_job)  # type: ignore[no-untyped-call]


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
