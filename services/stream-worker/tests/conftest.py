"""Scenes for the worker's tests, and the states that a calm run ends in."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from feature_store.ids import id64
from tests.stream_scene import DAY_US, Load, NewScene, Scene
from trine.events.v1.events_pb2 import Transaction
from trine_cli.local.fixtures import KeptDatabase
from trine_cli.local.kafka_broker import KafkaBroker


@pytest.fixture
def new_scene(kafka_bootstrap: str, redis_url: str, tmp_path: Path) -> Iterator[NewScene]:
    """Makes scenes; keyword arguments `bootstrap`, `redis_url` take other servers."""
    made: list[Scene] = []

    def make(**options: str) -> Scene:
        tag = uuid.uuid4().hex[:8]
        scene = Scene(
            tag, options.get("bootstrap", kafka_bootstrap), options.get("redis_url", redis_url), tmp_path / tag
        )
        made.append(scene)
        return scene

    yield make
    for scene in made:
        scene.close()


@pytest.fixture(scope="session")
def load() -> Load:
    """What every fault test sends."""
    return Load.make(16_000)


def _equals_recomputation(scene: Scene, load: Load) -> None:
    """The state holds what its definition says, found from the messages one by one in plain Python."""
    for view, key_field, span_us in (("customer", "customer_id", 4 * DAY_US), ("terminal", "terminal_id", 6 * DAY_US)):
        events: dict[str, set[tuple[int, int, int]]] = {}
        labels: dict[str, set[tuple[int, int, int, int]]] = {}
        for m in load.messages:
            key = getattr(m, key_field)
            known = id64(m.transaction_id)
            if isinstance(m, Transaction):
                amount = m.amount if view == "customer" else 0
                events.setdefault(key, set()).add((m.event_time_us, known, amount))
            elif view == "terminal":
                labels.setdefault(key, set()).add((known, m.event_time_us, m.reported_at_us, int(m.fraud)))
        expected = {}
        for key, own in events.items():
            oldest = max(at for at, _, _ in own) - span_us
            kept = {e for e in own if e[0] > oldest}
            expected[key] = kept, {label for label in labels.get(key, set()) if label[1] > oldest}
        assert scene.points(view) == expected


@pytest.fixture(scope="session")
def clean(
    load: Load, kafka_broker: KafkaBroker, kept_database: KeptDatabase, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[tuple[str, str], bytes]:
    """The states that a calm run of `load` ends in."""
    folder = tmp_path_factory.mktemp("clean")
    scene = Scene(uuid.uuid4().hex[:8], kafka_broker.bootstrap, kept_database(), folder)
    try:
        scene.send(load.messages)
        worker = scene.worker()
        scene.settled()
        states = scene.states()
        assert worker.stop() == 0, worker.log.read_text()[-2000:]
        assert not scene.letters()
        _equals_recomputation(scene, load)
        return states
    finally:
        scene.close()
