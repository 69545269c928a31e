"""Messages to files: what a chunk becomes, and what merging does to it. No Kafka."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pytest
from feature_store import warehouse_names as names
from feature_store.admission import RECORDED_UNKNOWN
from feature_store.sharding import shard_of
from feature_store.source_files import SourceFiles, times_us
from feature_store.warehouse import Warehouse, WarehouseFile
from feature_store.warehouse_messages import messages_of
from feature_store.warehouse_store import WarehouseStore
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st
from service_kit.metrics import Metrics
from stream_worker import archive_chunk
from stream_worker.archive_chunk import TopicLog, chunk_files
from stream_worker.archive_columns import rows_of
from stream_worker.archive_compaction import Compaction, CompactionPolicy, batches
from stream_worker.archive_metrics import ArchiveMetrics
from stream_worker.archive_topics import (
    DECISIONS,
    SHADOW_DECISIONS,
    ArchivedTopic,
    TopicDeclaration,
    archived_topics,
    raw_topic,
)
from stream_worker.intake import Messages
from stream_worker.streams import PlanUnsupported
from tests.stream_scene import DAY_US, START_US, make_plan
from tests.test_columns import INT64, REPORT, TRANSACTION
from trine.events.v1.events_pb2 import DecisionRecord, FraudReport, StageLatency, Transaction, ViewInput

PARTITIONS = 4
TOPICS = {t.folder: t for t in archived_topics(make_plan("t"))}
TRANSACTIONS, REPORTS, DECIDED = TOPICS["transactions"], TOPICS["fraud-reports"], TOPICS["decisions"]
LOG = TopicLog("t.transactions", "some-id", PARTITIONS)

TEXT = st.text(max_size=12)
FLOAT32 = st.floats(width=32, allow_nan=False)
UINT32 = st.integers(0, 2**32 - 1)
GOOD_TIME = st.integers(START_US, START_US + 3 * DAY_US)
IDS = st.from_regex(r"[A-Za-z0-9._:-]{1,20}", fullmatch=True)
INPUT = st.builds(
    ViewInput,
    view=TEXT,
    entity=TEXT,
    key=TEXT,
    state_version=TEXT,
    topic=TEXT,
    topic_id=TEXT,
    partition=st.integers(-1, 2**31 - 1),
    offset=INT64,
    tail_ids=st.lists(INT64, max_size=4),
    known=st.booleans(),
    lost=st.booleans(),
)
DECISION = st.builds(
    DecisionRecord,
    decision_id=IDS,
    transaction=st.none() | TRANSACTION,
    verdict=st.integers(0, 3) | st.integers(100, 105),
    score=FLOAT32,
    source=st.integers(0, 3),
    release=TEXT,
    vector=st.lists(FLOAT32, max_size=15),
    inputs=st.lists(INPUT, max_size=3),
    rules=st.lists(TEXT, max_size=3),
    batch_score=st.none() | FLOAT32,
    batch_run=TEXT,
    decided_at_us=GOOD_TIME,
    feature_lag_ms=UINT32,
    latency=st.none() | st.builds(StageLatency, queue_us=UINT32, total_us=UINT32),
    fallback_reason=TEXT,
)


def taken(values: Sequence[bytes | None], topic: str, partition: Sequence[int] | None = None) -> Messages:
    n = len(values)
    where = np.array(partition if partition is not None else [0] * n, dtype=np.int64)
    recorded = np.full(n, START_US + 999)
    return Messages(topic, where, np.arange(n), recorded, {}, [None] * n, values)


@settings(deadline=None)
@given(st.lists(DECISION, max_size=5))
def test_decisions_survive_to_the_bit(tmp_path_factory: pytest.TempPathFactory, records: list[DecisionRecord]) -> None:
    table, refused = rows_of(taken([r.SerializeToString() for r in records], "t"), DECIDED, PARTITIONS)
    assert not refused
    store = WarehouseStore(tmp_path_factory.mktemp("w"))
    for file in chunk_files(DECIDED.files, LOG, [table], {0: (0, len(records) - 1)}):
        store.write_table(file.path, file.table)
    files = Warehouse(store.uri).files(DECIDED.files)
    back: dict[int, Message] = {}
    for planned in files:
        found = Warehouse(store.uri).read(planned, DECIDED.files, places=True)
        back |= zip(found.column("_offset").to_pylist(), messages_of(found, DecisionRecord.DESCRIPTOR), strict=True)
    assert [back[i].SerializeToString(deterministic=True) for i in range(len(records))] == [
        r.SerializeToString(deterministic=True) for r in records
    ]


@settings(deadline=None)
@given(st.lists(TRANSACTION | REPORT, max_size=20))
def test_rows_are_the_sound_messages(messages: list[Transaction | FraudReport]) -> None:
    """Every message is a row that gives it back, or refused; which is decided as the features' role does."""
    for archived, kind in ((TRANSACTIONS, Transaction), (REPORTS, FraudReport)):
        own = [m for m in messages if isinstance(m, kind)]
        partition = [shard_of(m.customer_id, PARTITIONS) for m in own]
        table, refused = rows_of(taken([m.SerializeToString() for m in own], "t", partition), archived, PARTITIONS)
        rows = table.column("_offset").to_pylist()
        assert sorted([*rows, *(r.row for r in refused)]) == list(range(len(own)))
        assert archived.descriptor is not None
        assert list(messages_of(table, archived.descriptor)) == [own[i] for i in rows]
        assert table.column("_partition").to_pylist() == [partition[i] for i in rows]


def test_garbage_and_raw_records() -> None:
    good = transaction(0).SerializeToString()
    table, refused = rows_of(taken([b"\xff", None, good], "t", [shard_of("c1", PARTITIONS)] * 3), TRANSACTIONS, 4)
    assert [(r.row, r.reason) for r in refused] == [(0, "malformed"), (1, "malformed")]
    assert table.column("_offset").to_pylist() == [2]
    early = DecisionRecord(decision_id="d", decided_at_us=0).SerializeToString()
    _, refused = rows_of(taken([b"\xff", None, early], "t"), DECIDED, PARTITIONS)
    assert [(r.row, r.reason, r.field) for r in refused] == [
        (0, "malformed", ""),
        (1, "malformed", ""),
        (2, "invalid", "decided_at_us"),
    ]
    raw = taken([b"\xff", None], "t")
    raw.recorded_us[1] = RECORDED_UNKNOWN
    table, refused = rows_of(raw, raw_topic("t", "by-x"), PARTITIONS)
    assert not refused
    assert table.column("value").to_pylist() == [b"\xff", None]
    assert times_us(table, "recorded_at").tolist() == [START_US, 0]
    assert table.column("_recorded_at").null_count == 1


def test_what_cannot_be_declared() -> None:
    for wrong, said in (
        ({"message": "trine.events.v1.Nothing"}, "no generated code"),
        ({"id": "nothing"}, "id is 'nothing', no field"),
        ({"time": "amount"}, "must be int64 and end in _us"),
        ({"folder": "decisions"}, "would share the folder decisions"),
    ):
        right = {"topic": "x", "folder": "x", "message": "trine.events.v1.Transaction", "id": "transaction_id"}
        declared = TopicDeclaration.model_validate({**right, "time": "event_time_us", **wrong})
        with pytest.raises(PlanUnsupported, match=said):
            archived_topics(None, [declared])
    assert [t.topic for t in archived_topics(None)] == [DECISIONS.topic, SHADOW_DECISIONS.topic]


def transaction(n: int, day: int = 0) -> Transaction:
    return Transaction(
        transaction_id=f"t-{n}",
        event_time_us=START_US + day * DAY_US + n,
        customer_id="c1",
        terminal_id="7",
        amount=n,
        currency="EUR",
    )


class Made:
    """A warehouse whose log of `count` transactions over three days was written in chunks that overlap at random."""

    def __init__(
        self, folder: Path, count: int = 600, seed: int = 1, filesystem: pafs.FileSystem | None = None
    ) -> None:
        rng = random.Random(seed)
        self.warehouse = Warehouse("wh" if filesystem else folder, filesystem)
        self.messages = [transaction(n, rng.randrange(3)) for n in range(count)]
        values = [m.SerializeToString() for m in self.messages]
        self.home = shard_of("c1", PARTITIONS)
        self.table, _ = rows_of(taken(values, "t", [self.home] * count), TRANSACTIONS, PARTITIONS)
        at = 0
        while at < count:
            end = min(at + rng.randrange(1, 40), count)
            self.write(at, end)
            if rng.random() < 0.3:
                self.write(max(0, at - rng.randrange(30)), min(count, end + rng.randrange(10)))
            at = end

    def write(self, first: int, end: int) -> None:
        part = self.table.slice(first, end - first)
        for file in chunk_files(TRANSACTIONS.files, LOG, [part], {self.home: (first, end - 1)}):
            self.warehouse.store.write_table(file.path, file.table)

    def check(self) -> None:
        loaded = self.warehouse.load(TRANSACTIONS.files)
        wanted = sorted(self.messages, key=lambda m: (m.event_time_us, m.transaction_id))
        assert loaded.column("transaction_id").to_pylist() == [m.transaction_id for m in wanted]
        assert loaded.column("amount").to_pylist() == [m.amount for m in wanted]
        places = [r for f in self.warehouse.files(TRANSACTIONS.files) for r in self._offsets(f)]
        assert sorted(places) == list(range(len(self.messages)))

    def _offsets(self, file: WarehouseFile) -> list[int]:
        found: list[int] = self.warehouse.read(file, TRANSACTIONS.files, places=True).column("_offset").to_pylist()
        return found

    def files(self) -> int:
        return sum(map(len, self.warehouse.archived_days(TRANSACTIONS.files).values()))

    def compaction(self, policy: CompactionPolicy) -> Compaction:
        return Compaction(self.warehouse, [TRANSACTIONS], policy, ArchiveMetrics(Metrics("worker")))


AT_ONCE = CompactionPolicy(many=4, quiet_s=0.0, grace_s=0.0)


def test_compaction_leaves_a_file_a_day_and_the_same_rows(tmp_path: Path) -> None:
    made = Made(tmp_path)
    made.check()
    before = made.files()
    made.compaction(CompactionPolicy(many=4, quiet_s=0.0, grace_s=3_600)).pass_over(TRANSACTIONS)
    assert made.files() == before + 3, "small files stay for readers that have planned with them"
    made.check()
    compaction = made.compaction(AT_ONCE)
    compaction.pass_over(TRANSACTIONS)
    assert made.files() == 3
    made.check()
    made.write(100, 140)  # a zombie comes late
    made.check()
    for _ in range(2):
        compaction.pass_over(TRANSACTIONS)
    assert made.files() == 3
    made.check()


def test_files_of_an_earlier_contract_are_read_and_merged(tmp_path: Path) -> None:
    """A field that a message or a message inside it gained since was not set then."""
    records = [
        DecisionRecord(
            decision_id=f"d{n}", decided_at_us=START_US + n, release="r", rules=["far"],
            latency=StageLatency(queue_us=1),
            inputs=[ViewInput(view="v", key="k", offset=n, tail_ids=[1], lost=True)],
        )
        for n in range(6)
    ]  # fmt: skip
    table, _ = rows_of(taken([r.SerializeToString() for r in records], "t"), DECIDED, PARTITIONS)
    warehouse = Warehouse(tmp_path)
    for file in chunk_files(DECIDED.files, LOG, [table.slice(0, 3)], {0: (0, 2)}):
        rows = file.table.drop_columns(["release", "rules", "latency"]).to_pylist()
        for row in rows:
            row["inputs"] = [{name: i[name] for name in ("view", "key", "offset", "known")} for i in row["inputs"]]
        fields = {f.name: f.type for f in file.table.schema if f.name in rows[0]}
        less = [("view", pa.string()), ("key", pa.string()), ("offset", pa.int64()), ("known", pa.bool_())]
        fields["inputs"] = pa.list_(pa.struct(less))
        earlier = pa.Table.from_pylist(rows, pa.schema(fields)).replace_schema_metadata(file.table.schema.metadata)
        warehouse.store.write_table(file.path, earlier)
    for file in chunk_files(DECIDED.files, LOG, [table.slice(3, 3)], {0: (3, 5)}):
        warehouse.store.write_table(file.path, file.table)
    for record in records[:3]:
        for field in "release", "rules", "latency":
            record.ClearField(field)
        record.inputs[0].ClearField("tail_ids")
        record.inputs[0].ClearField("lost")
    assert list(messages_of(warehouse.load(DECIDED.files), DecisionRecord.DESCRIPTOR)) == records
    Compaction(warehouse, [DECIDED], replace(AT_ONCE, many=2), ArchiveMetrics(Metrics("worker"))).pass_over(DECIDED)
    assert len(warehouse.files(DECIDED.files)) == 1
    assert list(messages_of(warehouse.load(DECIDED.files), DecisionRecord.DESCRIPTOR)) == records


def test_compaction_on_another_file_system(tmp_path: Path) -> None:
    made = Made(tmp_path, 100, filesystem=pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem()))
    for _ in range(2):
        made.compaction(AT_ONCE).pass_over(TRANSACTIONS)
    assert made.files() == 3
    made.check()


class Dies(BaseException):
    """Stands for kill -9: nothing handles it."""


@pytest.mark.parametrize("seed", range(4))
def test_compaction_that_dies_anywhere(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made(tmp_path, 200, seed)
    real_write, real_delete = WarehouseStore.write_table, WarehouseStore.delete
    steps = 0
    for last in range(40):
        left = last % 8 + 1

        def step() -> None:
            nonlocal left, steps
            left, steps = left - 1, steps + 1
            if left == 0:
                raise Dies

        def write(store: WarehouseStore, path: str, table: pa.Table, plain_columns: tuple[str, ...] = ()) -> int:
            step()
            return real_write(store, path, table, plain_columns)

        def delete(store: WarehouseStore, path: str) -> None:
            step()
            real_delete(store, path)

        with monkeypatch.context() as patched:
            patched.setattr(WarehouseStore, "write_table", write)
            patched.setattr(WarehouseStore, "delete", delete)
            try:
                made.compaction(AT_ONCE).pass_over(TRANSACTIONS)
            except Dies:
                made.check()
            else:
                break
    assert steps > 10
    made.compaction(AT_ONCE).pass_over(TRANSACTIONS)
    made.check()
    assert made.files() == 3


def test_two_compactions_at_once_lose_nothing(tmp_path: Path) -> None:
    """Each pass sees the listing of before the other's."""
    made = Made(tmp_path, 300)
    policy = CompactionPolicy(many=4, quiet_s=0.0, grace_s=0.0, target_bytes=12_000)
    for _ in range(4):
        listed = made.warehouse.archived_days(TRANSACTIONS.files)
        for _ in range(2):
            compaction = made.compaction(policy)
            compaction._warehouse = _Stale(tmp_path, listed)
            compaction.pass_over(TRANSACTIONS)
            made.check()


class _Stale(Warehouse):
    """Lists what was there a while ago."""

    def __init__(self, uri: Path, listed: object) -> None:
        super().__init__(uri)
        self._stale = listed

    def archived_days(self, source: SourceFiles) -> object:  # type: ignore[override]  # as it was
        return self._stale


def test_small_files_join_by_size() -> None:
    def file(size: int, n: int = 0) -> WarehouseFile:
        return WarehouseFile(f"{size}-{n}", 0, 1, size, 0.0, "log")

    policy = CompactionPolicy(many=4, target_bytes=1_000)
    few = [file(10, n) for n in range(3)]
    assert batches(few, policy, quiet=False) == []
    assert batches(few, policy, quiet=True) == [few]
    four = [file(10, n) for n in range(4)]
    # A row is not written again with every few others.
    assert batches([*four, file(300)], policy, quiet=False) == [four]
    assert batches([*four, file(40)], policy, quiet=False) == [[*four, file(40)]]
    assert batches([*four, file(600)], policy, quiet=True) == [four]
    assert [len(b) for b in batches([file(300, n) for n in range(7)], policy, quiet=True)] == [3, 3]


def test_a_partition_with_many_rows_gets_its_own_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_chunk, "OWN_FILE_ROWS", 5)
    archived: ArchivedTopic = raw_topic("t", "by-x")
    partition = [0] * 6 + [1, 2, 2] + [3] * 5
    messages = Messages(
        "t", np.array(partition), np.arange(14), np.full(14, START_US), {}, [None] * 14, [b"%d" % n for n in range(14)]
    )
    table, _ = rows_of(messages, archived, PARTITIONS)
    spans = {0: (0, 5), 1: (6, 6), 2: (7, 9), 3: (9, 13)}
    found = {f.path.rsplit("/", 1)[1]: f.table.num_rows for f in chunk_files(archived.files, LOG, [table], spans)}
    shared = names.file_name(LOG.name, {1: [(6, 6)], 2: [(7, 9)]})
    assert found == {f"{LOG.name}-0-0-5.parquet": 6, f"{LOG.name}-3-9-13.parquet": 5, shared: 3}


def test_what_a_killed_writer_left_is_cleared(tmp_path: Path) -> None:
    made = Made(tmp_path, 50)
    left = tmp_path / "transactions" / ".x.parquet.1234.unfinished"
    left.touch()
    made.check()
    made.warehouse.store.clear_unfinished("transactions", time.time() - 3_600)
    assert left.exists()
    made.warehouse.store.clear_unfinished("transactions", time.time() + 1)
    assert not left.exists()
