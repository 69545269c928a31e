"""A rebuild under load, with the real Redis, Kafka, workers and archive: no wrong read before, during and after."""

from __future__ import annotations

import asyncio
import hashlib
import random
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient
from feature_store import keys as names
from feature_store.log_positions import archived_logs
from feature_store.online import FeatureRequest, OnlineFeatures, Outcome
from feature_store.rebuild import rebuild
from feature_store.sharding import shard_of
from feature_store.source_files import day_name
from feature_store.state_versions import CatchUp
from tests.stream_scene import DAY_US, START_US, Load, NewScene, Scene, until
from tests.test_faults import SLOW, States, absorbed, same
from trine.events.v1.events_pb2 import FraudReport, Transaction
from trine_cli.local.process import ChildProcess

Message = Transaction | FraudReport


class Requests:
    """A client: for every transaction the features first, then the event, as a gateway does; and what is right."""

    def __init__(self, scene: Scene, before: Sequence[Message]) -> None:
        self.scene = scene
        self.seen: dict[str, list[tuple[int, int]]] = {}
        self.at_terminal: dict[str, list[int]] = {}
        self.terminals = True
        self.vectors = 0
        self.versions: list[str] = []
        for m in before:
            self._note(m)

    def _note(self, m: Message) -> None:
        if isinstance(m, Transaction):
            self.seen.setdefault(m.customer_id, []).append((m.event_time_us, m.amount))
            self.at_terminal.setdefault(m.terminal_id, []).append(m.event_time_us)

    def run(self, messages: Sequence[Message], per_second: float, stop: threading.Event) -> int:
        """Sends until `stop`; how many messages."""
        return asyncio.run(self._run(messages, per_second, stop))

    async def _run(self, messages: Sequence[Message], per_second: float, stop: threading.Event) -> int:
        online = await OnlineFeatures.connect(self.scene.redis_url, self.scene.plan, self.scene.shards, timeout_s=10)
        began, sent = time.monotonic(), 0
        try:
            for first in range(0, len(messages), 20):
                if stop.is_set():
                    break
                batch = messages[first : first + 20]
                await self._ask(online, [m for m in batch if isinstance(m, Transaction)])
                await asyncio.to_thread(self.scene.send, batch)
                sent = first + len(batch)
                await asyncio.sleep(max(0.0, began + sent / per_second - time.monotonic()))
        finally:
            await online.close()
        return sent

    async def _ask(self, online: OnlineFeatures, batch: Sequence[Transaction]) -> None:
        customer, terminal = (e.name for e in self.scene.plan.entities)
        for m in batch:
            request = FeatureRequest(
                m.transaction_id,
                m.event_time_us,
                {customer: m.customer_id, terminal: m.terminal_id},
                {"amount": m.amount},
                hashlib.md5(m.transaction_id.encode()).digest(),
            )
            read = await online.read_and_append([request])
            assert (read.outcomes, read.usable.tolist()) == ([Outcome.NEW], [True])
            self._note(m)
            found = dict(zip(self.scene.plan.features, read.vectors[0].tolist(), strict=True))
            version = read.inputs[0][0].version
            if version not in self.versions:
                self.versions.append(version)
            own = self.seen[m.customer_id]
            for days in (1, 2, 3):
                inside = [a for t, a in own if m.event_time_us - days * DAY_US < t <= m.event_time_us]
                right = (len(inside), float(np.float32(sum(inside) / len(inside))))
                got = (found[f"customer_count_{days}d"], found[f"customer_mean_amount_{days}d"])
                assert got == right, f"{m.transaction_id} of {m.customer_id}, state version {version}, {days} d"
            if self.terminals:
                # The worker is less than the view's delay behind, so that all of these are absorbed.
                until_us = m.event_time_us - 2 * DAY_US
                inside = [t for t in self.at_terminal.get(m.terminal_id, []) if until_us - DAY_US < t <= until_us]
                assert found["terminal_count_1d"] == len(inside), (m.transaction_id, version)
            self.vectors += 1


@dataclass
class Asking:
    """Requests in a thread. `done` stops them and sends the rest without asking."""

    scene: Scene
    requests: Requests
    messages: Sequence[Message]
    stop: threading.Event = field(default_factory=threading.Event)
    sent: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(
            target=lambda: self.sent.append(self.requests.run(self.messages, 250, self.stop))
        )
        self.thread.start()

    def more(self, count: int) -> None:
        """Waits for so many more right answers."""
        goal = self.requests.vectors + count
        until(lambda: self.requests.vectors >= goal or not self.thread.is_alive(), 60)
        assert self.requests.vectors >= goal, "a wrong answer, or the messages are all sent"

    def done(self) -> None:
        self.stop.set()
        self.thread.join()
        self.scene.send(self.messages[self.sent[0] :])


@pytest.fixture
def archive(load: Load, new_scene: NewScene, tmp_path: Path) -> Iterator[tuple[Scene, Path, Asking]]:
    """A scene whose first half is absorbed, an archive of it that goes on, and a client that sends the other half."""
    scene = new_scene()
    warehouse = tmp_path / "warehouse"
    half = len(load.messages) // 2
    archiver = scene.worker(
        "archive", wait=False, role="archive", warehouse=warehouse, archive_age_s=0.3, compact_every_s=0
    )
    worker = scene.worker(batch_rows=SLOW, static_membership=True)
    scene.send(load.messages[:half])
    scene.settled()
    until(lambda: archived(scene) > 1_000, 60)
    asking = Asking(scene, Requests(scene, load.messages[:half]), load.messages[half:])
    try:
        asking.more(100)
        yield scene, warehouse, asking
    finally:
        asking.stop.set()
        asking.thread.join()
    assert archiver.stop() == 0
    assert scene.workers[-1].stop() == 0 or worker.returncode is not None


def archived(scene: Scene) -> int:
    """Transactions that are in the archive for sure."""
    logs = archived_logs(scene.bootstrap, scene.plan, scene.shards, scene.tag)
    return sum(logs.ends[scene.plan.source.topic].ends.values())


def test_a_rebuild_from_the_archive_under_load(archive: tuple[Scene, Path, Asking], clean: States) -> None:
    scene, warehouse, asking = archive
    logs = archived_logs(scene.bootstrap, scene.plan, scene.shards, scene.tag, skew_ms=0)
    far: list[CatchUp] = []
    made = rebuild(scene.redis, scene.plan, warehouse, None, scene.shards, logs=logs, wait_s=60, told=far.append)
    assert far, "it was served before anybody followed"
    asking.more(200)
    asking.done()
    assert asking.requests.versions == ["1", made.version]
    scene.settled()
    same(scene, clean)
    assert not scene.letters()


REBUILD = """
import json, pathlib, sys, redis
from feature_store.archived_log import LogEnd
from feature_store.definitions import FeaturePlan
from feature_store.log_positions import archived_logs
from feature_store.rebuild import rebuild
plan = FeaturePlan.from_json(json.loads(pathlib.Path(sys.argv[1]).read_text()))
url, bootstrap, tag, warehouse = sys.argv[2:]
logs = archived_logs(bootstrap, plan, 8, tag)
# As if the archive were far behind, so that there is much to catch up with: an earlier end is as good.
for end in logs.ends.values():
    end.ends.update({p: n // 4 for p, n in end.ends.items()})
print(rebuild(redis.Redis.from_url(url), plan, warehouse, None, 8, logs=logs, wait_s=60))
"""


def test_whatever_is_killed_meanwhile(archive: tuple[Scene, Path, Asking], clean: States, tmp_path: Path) -> None:
    scene, warehouse, asking = archive
    asking.requests.terminals = False
    (tmp_path / "rebuild.py").write_text(REBUILD)
    rng = random.Random(11)

    def started(n: int) -> ChildProcess:
        arguments = [scene.folder / "plan.json", scene.redis_url, scene.bootstrap, scene.tag, warehouse]
        command = [sys.executable, str(tmp_path / "rebuild.py"), *map(str, arguments)]
        child = ChildProcess(f"rebuild {n}", command, log=tmp_path / f"rebuild-{n}.log")
        until(lambda: scene.redis.get(names.REBUILDING) == str(n).encode(), 30)
        return child

    # While it writes states, and while workers follow.
    first = started(2)
    time.sleep(rng.random() / 5)
    first.kill()
    second = started(3)
    until(lambda: scene.redis.get(names.NEXT_POINTER) is not None, 30)
    second.kill()
    assert scene.redis.get(names.VERSION_POINTER) == b"1", "it was killed too late"
    asking.more(50)
    assert asking.requests.versions == ["1"]
    # The worker dies twice while the third one is followed.
    third = started(4)
    until(lambda: scene.redis.get(names.NEXT_POINTER) == b"4", 30)
    for _ in range(2):
        time.sleep(0.3 + rng.random())
        scene.workers[-1].kill()
        scene.worker(batch_rows=SLOW, static_membership=True)
    until(lambda: scene.redis.get(names.VERSION_POINTER) == b"4", 60, lambda: third.log.read_text()[-500:])
    asking.more(100)
    asking.done()
    assert asking.requests.versions == ["1", "4"]
    scene.settled()
    same(scene, clean)
    until(lambda: third.returncode == 0, 20, lambda: third.log.read_text()[-500:])
    # What the killed ones had written is gone.
    assert not [key for n in (1, 2, 3) for key in scene.redis.scan_iter(match=f"{{*}}[sm]:{n}*")]


def dataset(folder: Path, messages: Sequence[Message], until_us: int) -> Path:
    """Transactions before a time as an importer writes them."""
    rows = [m for m in messages if isinstance(m, Transaction) and m.event_time_us < until_us]
    rows.sort(key=lambda m: m.event_time_us)
    table = pa.table(
        {
            "transaction_id": [m.transaction_id for m in rows],
            "event_time": pa.array([m.event_time_us for m in rows], pa.timestamp("us", tz="UTC")),
            "customer_id": [m.customer_id for m in rows],
            "terminal_id": [m.terminal_id for m in rows],
            "amount": pa.array([m.amount for m in rows], pa.int64()),
        }
    )
    day = np.array([m.event_time_us // DAY_US for m in rows])
    (folder / "transactions").mkdir(parents=True)
    for d in np.unique(day).tolist():
        pq.write_table(table.filter(pa.array(day == d)), folder / "transactions" / f"{day_name(d * DAY_US)}.parquet")
    return folder


def test_a_base_that_redis_lost_is_told_apart_from_new_customers(
    new_scene: NewScene, load: Load, tmp_path: Path
) -> None:
    """History from before the log, a Redis that is emptied, a worker that starts anew: lost until the next rebuild."""
    scene = new_scene()
    middle = START_US + 6 * DAY_US
    history = dataset(tmp_path / "data", load.messages, middle)
    later = [m for m in load.messages if m.event_time_us >= middle][:2_000]
    worker = scene.worker()
    rebuild(scene.redis, scene.plan, history, middle, scene.shards, wait_s=30)
    scene.send(later)
    scene.settled()
    before = scene.states()
    customers = [f"c{i}" for i in range(20)]
    right = reads(scene, customers)
    assert not any(lost for _, lost in right)
    assert sum(count for count, _ in right) > 0

    scene.redis.flushdb()
    until(lambda: {lost for _, lost in reads(scene, customers)} == {True} and absorbed(scene) > 1_000, 30)
    worker.kill()
    worker = scene.worker(static_membership=True)
    until(
        lambda: absorbed(scene) > 1_000 and all(m.get("owner", "").startswith("w1") for m in scene.metas().values()), 30
    )
    assert {lost for _, lost in reads(scene, customers)} == {True}
    assert all("progress_us" not in m and m["lost"].startswith("2:") for m in scene.metas().values())

    rebuild(scene.redis, scene.plan, history, middle, scene.shards, wait_s=30)
    scene.settled()
    assert reads(scene, customers) == right
    assert scene.states() == before
    assert worker.stop() == 0


def test_without_a_base_an_emptied_redis_catches_up_from_the_log(new_scene: NewScene, load: Load) -> None:
    """As long as the log holds it: of what it does not hold any more the state is lost."""
    scene = new_scene()
    worker = scene.worker()
    scene.send(load.messages[:2_000])
    scene.settled()
    before = scene.states()
    scene.redis.flushdb()
    scene.settled()
    assert scene.states() == before
    assert worker.stop() == 0

    home = shard_of("c1", scene.shards)
    with AdminClient({"bootstrap.servers": scene.bootstrap, "log_level": 0}) as admin:
        at = TopicPartition(scene.topics[0], home, 10)
        admin.delete_records([at])[at].result(20)
    scene.redis.flushdb()
    worker = scene.worker()
    whole = {key for key in scene.metas() if key != ("customer", home)}
    until(lambda: all("progress_us" in scene.metas()[key] for key in whole), 30)
    until(lambda: "lost" in scene.metas()["customer", home], 30)
    until(lambda: int(scene.metas()["customer", home]["offset"]) > 10, 30)
    assert [lost for _, lost in reads(scene, ["c1"])] == [True]
    assert worker.stop() == 0


def reads(scene: Scene, customers: Sequence[str]) -> list[tuple[float, bool]]:
    """Of each customer at the load's end: events of three days, and whether its state is lost."""

    async def read() -> list[tuple[float, bool]]:
        online = await OnlineFeatures.connect(scene.redis_url, scene.plan, scene.shards, timeout_s=10)
        try:
            found = await online.read("customer", customers, START_US + 8 * DAY_US)
        finally:
            await online.close()
        return [(r.features["customer_count_3d"], r.lost) for r in found]

    return asyncio.run(read())
