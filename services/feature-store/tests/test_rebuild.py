"""Rebuilt state: the same bytes on Spark and in one process; versions come and go, and only one rebuild is served."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import redis
from feature_store import keys as names
from feature_store import state_versions as versions
from feature_store import warehouse_names
from feature_store.admission import OK, UNSET_CLOCK, judge
from feature_store.archived_log import LogEnd
from feature_store.codec import StateCodec
from feature_store.log_positions import ArchivedLogs
from feature_store.rebuild import rebuild
from feature_store.sharding import shard_of
from feature_store.source_files import DAY_US, day_name
from feature_store.spark_rebuild import OnSpark
from feature_store.state_versions import NotCaughtUp, RebuildSuperseded
from feature_store.updates import StateWriter
from feature_store.warehouse import Warehouse
from pyspark.sql import SparkSession
from tests.test_offline import DAYS, FIRST_DAY, Tables, random_tables, times_of, written

from models.fraud.features import PLAN, TERMINAL_RISK
from models.fraud.sources import FRAUD_REPORT_FILES, TRANSACTION_FILES

SHARDS = 4
PARTITIONS = 3
MIDDLE_US = FIRST_DAY + DAYS // 2 * DAY_US + 12_345


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as found:
        yield found


def states(client: redis.Redis, version: str) -> dict[bytes, bytes]:
    """Key after the version → bytes."""
    prefix = f"s:{version}:".encode()
    found: dict[bytes, bytes] = {}
    for key in client.scan_iter(match="{*}" + prefix.decode() + "*"):
        value = client.get(key)
        assert isinstance(value, bytes)
        found[key.replace(prefix, b"", 1)] = value
    return found


def test_spark_writes_the_same_bytes(spark: SparkSession, redis_url: str, client: redis.Redis, tmp_path: Path) -> None:
    path = written(tmp_path / "data", random_tables(11, 2_000))
    first = rebuild(client, PLAN, path, MIDDLE_US, SHARDS)
    right = states(client, first.version)
    on_spark = OnSpark(spark, redis_url, Warehouse(path))
    second = rebuild(client, PLAN, path, MIDDLE_US, SHARDS, build=on_spark)
    assert (first.version, second.version) == ("2", "3")
    assert states(client, "3") == right
    assert (second.entities, second.state_bytes) == (first.entities, first.state_bytes)
    # The cut is exclusive, of events and of labels; what is known a microsecond earlier is there.
    key = f"{{terminal.{shard_of('T3', SHARDS)}}}terminal:T3".encode()
    points = StateCodec(TERMINAL_RISK).decode([right[key]])
    assert points.labels is not None
    assert points.time_us.max() < MIDDLE_US
    assert points.labels.known_at_us.max() < MIDDLE_US
    assert client.get(names.VERSION_POINTER) == b"3"
    # Nothing of version 2 is left.
    assert not states(client, "2")
    assert not list(client.scan_iter(match="{*}m:2"))


def archived(folder: Path, tables: Tables, seed: int) -> ArchivedLogs:
    """The tables as the archiver would have written them from two topics, cut at an offset in the middle of a batch;
    of the first ten days as an importer would have: from before the log."""
    rng = np.random.default_rng(seed)
    ends = {}
    for source, table, topic in (
        (TRANSACTION_FILES, tables[0], PLAN.source.topic),
        (FRAUD_REPORT_FILES, tables[1], PLAN.label_sources[0].topic),
    ):
        times = times_of(table, source.time_column)
        old = times < FIRST_DAY + 10 * DAY_US
        for day in np.unique(times[old] // DAY_US).tolist():
            file = folder / source.folder / f"{day_name(day * DAY_US)}.parquet"
            file.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table.filter(pa.array(old & (times // DAY_US == day))), file)
        table, times = table.filter(pa.array(~old)), times[~old]
        # Out of order, so that some rows come too late; and some twice.
        order = np.argsort(times + rng.integers(0, 3 * DAY_US // 2, len(times)))
        again = np.sort(np.concatenate((np.arange(len(order)), rng.choice(len(order), 40))))
        table = table.take(pa.array(order[again]))
        keys = table.column(source.id_column if topic != PLAN.source.topic else "customer_id").to_pylist()
        partition = np.array([shard_of(k, PARTITIONS) for k in keys], dtype=np.int32)
        offset = np.zeros(table.num_rows, dtype=np.int64)
        for p in range(PARTITIONS):
            offset[partition == p] = np.arange((partition == p).sum())
        table = table.append_column("_partition", pa.array(partition)).append_column("_offset", pa.array(offset))
        recorded = pa.array(np.zeros(table.num_rows, np.int64), mask=np.ones(table.num_rows, bool))
        table = table.append_column("_recorded_at", recorded.cast(pa.timestamp("ms", tz="UTC")))
        log = warehouse_names.log_name(topic, "id")
        last = {p: int((partition == p).sum()) for p in range(PARTITIONS)}
        days = times_of(table, source.time_column) // DAY_US
        for day in np.unique(days).tolist():
            for p in range(PARTITIONS):
                for begin in range(0, last[p], 300):
                    coverage = {p: [(begin, min(begin + 299, last[p] - 1))]}
                    mask = (days == day) & (partition == p) & (offset >= begin) & (offset < begin + 300)
                    file = folder / source.folder / day_name(day * DAY_US) / warehouse_names.file_name(log, coverage)
                    file.parent.mkdir(parents=True, exist_ok=True)
                    if mask.any():
                        pq.write_table(table.filter(pa.array(mask)), file)
        ends[topic] = LogEnd(log, "id", {p: max(0, n - 37) for p, n in last.items()})
    ids = {PLAN.source.topic: "id", PLAN.label_sources[0].topic: "id", "trine.by-terminal": "other"}
    return ArchivedLogs(ends, {"trine.by-terminal": dict.fromkeys(range(SHARDS), 7)}, ids)


def with_what_is_labelled(tables: Tables) -> Tables:
    """Reports as their messages say them, with the event's time and its terminal; on unknown events anything."""
    rows = {r["transaction_id"]: r for r in tables[0].to_pylist()}
    told = [rows.get(i, rows[tables[0].column("transaction_id")[0].as_py()]) for i in tables[1].column(0).to_pylist()]
    reports = tables[1].append_column("terminal_id", pa.array([r["terminal_id"] for r in told]))
    times = pa.array([r["event_time"] for r in told], pa.timestamp("us", tz="UTC"))
    return tables[0], reports.append_column("event_time", times)


def test_an_archive_up_to_its_end(spark: SparkSession, redis_url: str, client: redis.Redis, tmp_path: Path) -> None:
    """Judged in the log's order, below its end, each id once; clocks and offsets are those of the end."""
    tables = with_what_is_labelled(random_tables(12, 1_500))
    logs = archived(tmp_path, tables, 12)
    made = rebuild(client, PLAN, tmp_path, None, SHARDS, logs=logs)
    right = states(client, made.version)
    spark_made = rebuild(
        client, PLAN, tmp_path, None, SHARDS, logs=logs, build=OnSpark(spark, redis_url, Warehouse(tmp_path))
    )
    assert states(client, spark_made.version) == right
    # Against the log as it stands in the files, one partition after the other.
    columns = ["_partition", "_offset", "event_time", "customer_id", "transaction_id"]
    files = (tmp_path / "transactions").glob("*/*.parquet")
    rows = [r for file in files for r in pq.read_table(file, columns=columns, partitioning=None).to_pylist()]
    end = logs.ends[PLAN.source.topic].ends
    kept: dict[str, set[str]] = {}
    refused = 0
    for p in range(PARTITIONS):
        log = sorted((r for r in rows if r["_partition"] == p and r["_offset"] < end[p]), key=lambda r: r["_offset"])
        times = np.array([round(r["event_time"].timestamp() * 1e6) for r in log])
        verdict, clock = judge(times, times, UNSET_CLOCK, PLAN.lateness_us, PLAN.max_step_us)
        refused += int((verdict != OK).sum())
        meta = client.hgetall(names.meta("customer", p, spark_made.version))
        assert (int(meta[b"offset"]), int(meta[b"clock"]), meta[b"topic_id"]) == (end[p], clock, b"id")
        for r, good in zip(log, (verdict == OK).tolist(), strict=True):
            if good:
                kept.setdefault(r["customer_id"], set()).add(r["transaction_id"])
    assert refused > 10
    before = {
        event_id
        for event_id, at in zip(
            tables[0].column("transaction_id").to_pylist(), times_of(tables[0], "event_time").tolist(), strict=True
        )
        if at < FIRST_DAY + 10 * DAY_US
    }
    codec = StateCodec(PLAN.views[0])
    for key, ids in kept.items():
        points = codec.decode([right[f"{{customer.{shard_of(key, SHARDS)}}}customer:{key}".encode()]])
        assert {str(i) for i in points.id.tolist()} <= ids | before
        assert len(points.id) > 5
    terminal = client.hgetall(names.meta("terminal", 1, spark_made.version))
    assert (terminal[b"offset"], terminal[b"topic_id"]) == (b"7", b"other")


def test_nobody_follows_so_the_old_version_is_served_on(client: redis.Redis, tmp_path: Path) -> None:
    path = written(tmp_path / "data", random_tables(13, 200))
    StateWriter(client, PLAN, "w").claim("customer", PLAN.source.topic, "id", range(SHARDS))
    with pytest.raises(NotCaughtUp, match="no worker has followed 8 of 8 shards"):
        rebuild(client, PLAN, path, MIDDLE_US, SHARDS, wait_s=0.2)
    assert client.get(names.VERSION_POINTER) == b"1"
    assert client.get(names.NEXT_POINTER) is None
    assert states(client, "2")
    # The next one deletes what it left, and does not take its number again.
    assert rebuild(client, PLAN, path, MIDDLE_US, SHARDS, at_once=True).version == "3"
    assert not states(client, "2")
    assert client.get(names.VERSION_POINTER) == b"3"


def test_only_the_rebuild_begun_last_is_served(client: redis.Redis, tmp_path: Path) -> None:
    path = written(tmp_path / "data", random_tables(14, 200))

    def another(_: int) -> None:
        if client.get(names.REBUILDING) == b"2":
            versions.begin(client)

    with pytest.raises(RebuildSuperseded):
        rebuild(client, PLAN, path, MIDDLE_US, SHARDS, another)
    assert client.get(names.VERSION_POINTER) is None
