"""A scene for the gateway's tests: a toy release on a real TorchServe, state in a real Redis, gateways as processes."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from model_release import Release
from model_release.testing import write_toy_release
from tests.gateway_scene import SHARDS, Gateway, NewGateway, NewGateways, build_state, register
from trine_cli.local.ports import HOST
from trine_cli.local.torchserve import TorchServe

from models.fraud.features import PLAN


@pytest.fixture(scope="session")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return write_toy_release(tmp_path_factory.mktemp("releases"), PLAN, seed=11)


@pytest.fixture(scope="session")
def model_server(torchserve: TorchServe, release: Release) -> TorchServe:
    register(torchserve, release)
    return torchserve


@pytest.fixture
def state(redis_url: str) -> str:
    """URL of a Redis database with the empty state of all shards."""
    build_state(redis_url)
    return redis_url


@pytest.fixture
def scene(kafka_bootstrap: str, release: Release) -> dict[str, object]:
    """Settings that all gateways of a test share; a test may replace some."""
    return {
        "kafka_bootstrap": kafka_bootstrap,
        "releases": release.path.parent,
        "release": release.id,
        "shards": SHARDS,
        # The rules alone answer where a test does not ask for a model.
        "torchserve_grpc": f"{HOST}:1",
        "deadline_ms": 1_000,
    }


@pytest.fixture
def new_gateway(tmp_path: Path, scene: dict[str, object]) -> Iterator[NewGateway]:
    count = itertools.count()
    with ExitStack() as running:

        def make(*, processes: int = 1, start: bool = True, **settings: object) -> Gateway:
            gateway = Gateway(tmp_path / f"gateway-{next(count)}", {**scene, **settings}, processes)
            running.callback(gateway.kill)
            return gateway.start() if start else gateway

        yield make


@pytest.fixture
def new_gateways(new_gateway: NewGateway) -> NewGateways:
    def make(count: int, **settings: Any) -> list[Gateway]:
        gateways = [new_gateway(processes=1, start=False, **settings) for _ in range(count)]
        for gateway in gateways:
            gateway.launch()
        for gateway in gateways:
            gateway.wait_ready()
        return gateways

    return make
