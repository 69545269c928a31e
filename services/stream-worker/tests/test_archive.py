"""The role `archive` with real Kafka: whatever dies, stalls or is taken for dead, each event is there once."""

from __future__ import annotations

import json
import random
import signal
import urllib.request
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient
from feature_store.sharding import shard_of
from feature_store.warehouse import Warehouse
from feature_store.warehouse_messages import messages_of
from stream_worker.archive_topics import ArchivedTopic, archived_topics
from tests.stream_scene import DAY_US, START_US, Load, NewScene, Scene, until
from tests.test_inputs import report, transaction
from trine.events.v1.events_pb2 import DecisionRecord, FraudReport, Transaction
from trine_cli.kafka_log import KafkaLog
from trine_cli.local.object_store import OBJECT_STORE, below
from trine_cli.local.process import ChildProcess
from trine_cli.local.topics import create_topics


class Archive:
    """A scene whose workers archive to `uri`, a folder or an object store."""

    def __init__(self, scene: Scene, uri: str) -> None:
        self.scene, self.uri = scene, uri
        self.warehouse = Warehouse(uri)
        self.topics = {t.folder: t for t in archived_topics(scene.plan)}
        self.decisions = f"{scene.tag}.decisions"
        self.declared = json.dumps(
            [
                {
                    "topic": self.decisions,
                    "folder": "verdicts",
                    "message": "trine.events.v1.DecisionRecord",
                    "id": "decision_id",
                    "time": "decided_at_us",
                }
            ]
        )

    def worker(self, worker_id: str = "a1", wait: bool = True, **settings: object) -> ChildProcess:
        """Small chunks, so that a fault falls between many of them."""
        values = {
            "role": "archive",
            "warehouse": self.uri,
            "archive_topics": self.declared,
            "archive_rows": 100,
            "archive_age_s": 0.3,
            "compact_every_s": 0,
        }
        return self.scene.worker(worker_id, wait, **{**values, **settings})

    def source(self, folder: str) -> ArchivedTopic:
        return self.topics[folder]

    def rows(self, folder: str) -> int:
        return int(self.warehouse.load(self.source(folder).files).num_rows)

    def messages(self, folder: str) -> list[Transaction | FraudReport]:
        """What the reader gives, as messages."""
        archived = self.source(folder)
        assert archived.descriptor is not None
        return list(messages_of(self.warehouse.load(archived.files), archived.descriptor))  # type: ignore[arg-type]

    def offsets(self, folder: str) -> list[tuple[int, int]]:
        """Every place that counts, as often as it does."""
        files = self.source(folder).files
        out: list[tuple[int, int]] = []
        for file in self.warehouse.files(files):
            table = self.warehouse.read(file, files, places=True)
            out += zip(table.column("_partition").to_pylist(), table.column("_offset").to_pylist(), strict=True)
        return sorted(out)

    def end(self, folder: str) -> int:
        """Offsets archived, in all."""
        return sum(sum(ends.values()) for ends in self.warehouse.ends(self.source(folder).files).values())

    def committed(self) -> int:
        """Offsets committed, in all."""
        consumer = Consumer({"bootstrap.servers": self.scene.bootstrap, "group.id": f"{self.scene.tag}-archive"})
        try:
            asked = [TopicPartition(t, p) for t in self.scene.topics[:2] for p in range(self.scene.shards)]
            return sum(max(tp.offset, 0) for tp in consumer.committed(asked, timeout=10))
        finally:
            consumer.close()

    def holds(self, messages: Sequence[Transaction | FraudReport]) -> bool:
        """All of these and nothing else."""
        counts = self.rows("transactions"), self.rows("fraud-reports")
        return counts == (
            sum(isinstance(m, Transaction) for m in messages),
            sum(isinstance(m, FraudReport) for m in messages),
        )

    def check(self, messages: Sequence[Transaction | FraudReport]) -> None:
        """Waits until all of these are there, and looks at every one; also that each offset counts once."""
        until(lambda: self.holds(messages), 60, lambda: f"{self.rows('transactions')} of {len(messages)}")
        for folder, kind in (("transactions", Transaction), ("fraud-reports", FraudReport)):
            wanted = sorted(m.SerializeToString() for m in messages if isinstance(m, kind))
            assert sorted(m.SerializeToString() for m in self.messages(folder)) == wanted
            places = self.offsets(folder)
            assert len(set(places)) == len(places) == len(wanted)


@pytest.fixture(params=["folder", "object store"] if OBJECT_STORE else ["folder"])
def archive(new_scene: NewScene, tmp_path: Path, request: pytest.FixtureRequest) -> Archive:
    if request.param == "object store":
        return Archive(new_scene(), below(OBJECT_STORE, uuid.uuid4().hex))
    (tmp_path / "warehouse").mkdir()
    return Archive(new_scene(), str(tmp_path / "warehouse"))


@pytest.fixture(scope="module")
def some() -> Load:
    return Load.make(5_000, seed=5, span_days=3.0)


def test_killed_at_any_moment(archive: Archive, some: Load) -> None:
    rng = random.Random(4)
    kills, part = 2, len(some.messages) // 3
    for i in range(kills):
        archive.scene.send(some.messages[i * part : (i + 1) * part])
        worker = archive.worker(static_membership=True)
        goal = archive.rows("transactions") + rng.randrange(1, part // 2)
        # Between two files of a chunk as well as between files and commit.
        until(lambda goal=goal: archive.rows("transactions") >= goal, 30)  # type: ignore[misc]
        worker.kill()
        assert not archive.holds(some.messages[: (i + 1) * part]), "a kill should fall into the load"
    archive.scene.send(some.messages[kills * part :])
    worker = archive.worker(static_membership=True)
    archive.check(some.messages)
    assert worker.stop() == 0
    assert not archive.scene.letters()


def test_a_zombie_writes_and_nothing_comes_twice(archive: Archive, some: Load) -> None:
    archive.scene.send(some.messages[:2_000])
    zombie = archive.worker("zombie", archive_age_s=600, archive_rows=50_000_000)
    until(lambda: archive.scene.metric(zombie, "trine_worker_archive_pending_rows") >= 2_000, 30)
    # It holds rows that are nowhere yet, and sleeps until others have taken them over and written them.
    zombie.pause()
    heir = archive.worker("heir")
    archive.check(some.messages[:2_000])
    ours = archive.committed()
    archive.scene.send(some.messages[2_000:3_000])
    archive.check(some.messages[:3_000])
    zombie.signal(signal.SIGTERM)  # so that it writes what it holds as soon as it wakes
    zombie.resume()
    assert zombie.wait(30) == 0
    assert archive.committed() >= ours
    archive.scene.send(some.messages[3_000:])
    archive.check(some.messages)
    assert heir.stop() == 0


def test_workers_come_and_go_and_files_are_merged_meanwhile(archive: Archive, some: Load) -> None:
    sender = archive.scene.sending(some.messages, per_second=2_000)
    merging: dict[str, Any] = {
        "archive_rows": 400,
        "compact_every_s": 0.2,
        "compact_files": 4,
        "compact_quiet_s": 0.5,
        "compact_grace_s": 0.2,
    }
    first = archive.worker("first", **merging)
    until(lambda: archive.rows("transactions") > 500, 30)
    second = archive.worker("second", **merging)
    until(lambda: archive.scene.metric(second, "trine_worker_archive_partitions_info") > 0, 30)
    first.kill()
    sender.join()
    archive.check(some.messages)
    days = len(archive.warehouse.days(archive.source("transactions").files))
    until(lambda: len(archive.warehouse.files(archive.source("transactions").files)) == days, 30)
    archive.check(some.messages)
    assert second.stop() == 0


def test_sigterm_writes_what_was_read(archive: Archive) -> None:
    archive.scene.send([transaction(n) for n in range(50)])
    worker = archive.worker(archive_age_s=600, archive_rows=50_000_000)
    # The role keeps the decisions too, and other tests may have left some on this Kafka.
    log = KafkaLog(archive.scene.bootstrap)
    others = sum(sum(log.ends(topic).values()) for topic in ("trine.decisions", "trine.shadow-decisions"))
    until(lambda: archive.scene.metric(worker, "trine_worker_archive_pending_rows") == 50 + others, 30)
    assert archive.rows("transactions") == 0
    assert worker.stop() == 0
    assert archive.rows("transactions") == 50
    assert archive.committed() == 50


def test_garbage_repeats_and_every_kind_of_topic(archive: Archive) -> None:
    scene = archive.scene
    create_topics(scene.bootstrap, 2, names=(archive.decisions,))
    record = DecisionRecord(decision_id="t-1", decided_at_us=START_US + 5 * DAY_US, score=0.1, vector=[0.1, 2.5])
    home = shard_of("c1", scene.shards)
    conflict = transaction(1, amount=7)
    scene.send([transaction(1), transaction(2), transaction(1), conflict, report(1), report(1, fraud=False)])
    scene.send_raw(scene.topics[0], [(b"c1", b"\xff\x00", home), (b"c1", transaction(3).SerializeToString(), home)])
    scene.send_raw(scene.topics[0], [(b"c1", transaction(4, amount=-1).SerializeToString(), home)])
    scene.send_raw(scene.topics[2], [(None, b"any bytes", 1)])
    scene.send_raw(archive.decisions, [(b"c1", record.SerializeToString(), 0), (b"x", b"\xff", 1)])
    worker = archive.worker()
    until(lambda: archive.end("transactions") == 7, 30)
    assert sorted(m.transaction_id for m in archive.messages("transactions")) == ["t-1", "t-2", "t-3"]
    assert next(m for m in archive.messages("transactions") if m.transaction_id == "t-1") == transaction(1)
    assert len(archive.offsets("transactions")) == 5, "what was said twice is kept, and read once"
    until(lambda: archive.rows("fraud-reports") == 2, 30)
    days = archive.warehouse.days(archive.source("fraud-reports").files)
    assert days == [START_US // DAY_US * DAY_US + DAY_US], "a report belongs to the day it became known"
    raw = archive.source(f"by-terminal-{scene.tag}").files
    until(lambda: archive.warehouse.load(raw).num_rows == 1, 30)
    assert archive.warehouse.load(raw).column("value").to_pylist() == [b"any bytes"]
    declared = archived_topics(scene.plan, [])[0]  # decisions, in another folder
    files = declared.files
    files = type(files)("verdicts", files.id_column, files.time_column, files.schema, False, optional=files.optional)
    until(lambda: archive.warehouse.load(files).num_rows == 1, 30)
    assert declared.descriptor is not None
    assert list(messages_of(archive.warehouse.load(files), declared.descriptor)) == [record]
    letters = {(x.topic, x.reason) for x in scene.letters()}
    assert letters == {(scene.topics[0], "malformed"), (scene.topics[0], "invalid")}
    assert scene.metric(worker, "trine_worker_dead_letters_total") == 3
    assert scene.metric(worker, "trine_worker_events_total", source="transactions", outcome="archived") == 5
    until(lambda: scene.metric(worker, "trine_worker_archive_lag_events") == 0, 20)


def test_a_warehouse_that_cannot_be_written_loses_nothing(archive: Archive) -> None:
    if not archive.warehouse.store.local:
        pytest.skip("nothing can stand in the way of an object")
    in_the_way = Path(archive.uri) / "transactions"
    in_the_way.write_text("in the way")
    archive.scene.send([transaction(n) for n in range(20)])
    worker = archive.worker()
    until(lambda: "warehouse" in _degraded(archive, worker), 30)
    assert "transactions" in _degraded(archive, worker)["warehouse"]
    in_the_way.unlink()
    archive.check([transaction(n) for n in range(20)])
    until(lambda: not _degraded(archive, worker), 20)


def test_a_topic_made_anew_and_events_that_kafka_dropped(archive: Archive) -> None:
    scene, home = archive.scene, shard_of("c1", archive.scene.shards)
    first = archive.worker()
    scene.send([transaction(n) for n in range(5)])
    archive.check([transaction(n) for n in range(5)])
    with AdminClient({"bootstrap.servers": scene.bootstrap}) as admin:
        admin.delete_topics([scene.topics[0]])[scene.topics[0]].result(20)
        until(lambda: scene.topics[0] not in admin.list_topics(timeout=5).topics, 20)
        create_topics(scene.bootstrap, scene.shards, names=scene.topics[:1])
        # Other events at the same offsets.
        scene.send([transaction(n) for n in range(5, 12)])
        until(lambda: archive.rows("transactions") == 12, 60)
        assert len(archive.warehouse.archived(archive.source("transactions").files)) == 2
        assert first.stop() == 0
        scene.send([transaction(n) for n in range(12, 15)])
        at = TopicPartition(scene.topics[0], home, 9)
        admin.delete_records([at])[at].result(20)
    second = archive.worker("second")
    until(lambda: archive.rows("transactions") == 13, 30)
    assert any("Kafka dropped offsets 7 to 8" in reason for reason in _degraded(archive, second).values())
    assert scene.metric(second, "trine_worker_archive_lost_events_total", source="transactions") == 2


def test_refuses_to_start_without_a_warehouse(archive: Archive) -> None:
    assert archive.worker(wait=False, warehouse="").wait(20) == 78
    assert archive.worker(wait=False, warehouse="nosuch://x").wait(20) == 78


def test_control_records_count_as_read(archive: Archive) -> None:
    """Kafka's own records (here: of an aborted transaction) take offsets too; the archive says that it is past them."""
    scene = archive.scene
    producer = Producer({"bootstrap.servers": scene.bootstrap, "transactional.id": uuid.uuid4().hex, "log_level": 0})
    producer.init_transactions(10)
    producer.begin_transaction()
    producer.produce(scene.topics[2], b"never", partition=3)
    producer.flush(10)
    producer.abort_transaction(10)
    archive.worker()
    raw = archive.source(f"by-terminal-{scene.tag}").files
    until(lambda: [e.get(3) for e in archive.warehouse.ends(raw).values()] == [2], 30)
    producer.begin_transaction()
    producer.produce(scene.topics[2], b"once", partition=3)
    producer.commit_transaction(10)
    until(lambda: [e.get(3) for e in archive.warehouse.ends(raw).values()] == [4], 30)
    assert archive.warehouse.load(raw).column("value").to_pylist() == [b"once"]


def _degraded(archive: Archive, worker: ChildProcess) -> dict[str, str]:
    port = archive.scene.ports[worker.pid]
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2) as reply:
            body = reply.read()
    except urllib.error.HTTPError as error:
        body = error.read()
    found: dict[str, str] = json.loads(body)["degraded"]
    return {part: reason for part, reason in found.items() if part != "topics"}
