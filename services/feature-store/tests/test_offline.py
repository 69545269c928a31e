"""Offline features against SQL written from the definition, and against what requests get, to the bit."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import redis
from feature_store.dataset import DAY_US
from feature_store.dataset_writer import DatasetWriter
from feature_store.offline import compute_features
from feature_store.online import FeatureRequest, OnlineFeatures, Outcome
from feature_store.sharding import shard_of
from feature_store.updates import EventColumns, ShardUpdate, StateWriter

from models.fraud.features import PLAN
from models.fraud.sources import FRAUD_REPORT_FILES, TRANSACTION_FILES

FIRST_DAY = 1_698_796_800_000_000  # 2023-11-01 UTC
DAYS = 60
SECOND = 1_000_000
Tables = tuple[pa.Table, pa.Table]


def random_tables(seed: int, n: int) -> Tables:
    """Transactions and reports with ties, events on the borders of others' windows, and labels of every kind."""
    rng = np.random.default_rng(seed)
    time_us = FIRST_DAY + rng.integers(0, DAYS * 86_400, n) * SECOND
    same = rng.random(n) < 0.15
    time_us[same] = rng.choice(time_us, int(same.sum()))
    border = rng.random(n) < 0.25
    spans = rng.choice([1, 7, 30, 8, 14, 37], int(border.sum())) * DAY_US + rng.integers(-1, 2, int(border.sum()))
    time_us[border] = rng.choice(time_us, int(border.sum())) + spans
    time_us %= DAYS * DAY_US
    time_us += FIRST_DAY
    ids = rng.permutation(n * 10)[:n]
    order = np.lexsort((ids, time_us))
    time_us, ids = time_us[order], ids[order]
    amount = rng.integers(1, 30_000, n)
    amount[rng.random(n) < 0.1] = 10**12 - 7
    transactions = pa.table(
        {
            "transaction_id": pa.array([str(i) for i in ids]),
            "event_time": pa.array(time_us, pa.int64()).cast(pa.timestamp("us", tz="UTC")),
            "customer_id": pa.array([f"C{i}" for i in rng.integers(0, 25, n)]),
            "terminal_id": pa.array([f"T{i}" for i in rng.integers(0, 12, n)]),
            "amount": pa.array(amount, pa.int64()),
            "currency": pa.array(["EUR"] * n),
        }
    )
    at = rng.choice(n, n // 3)
    # Some before their event, some at the very moment that a feature looks; some are said twice or taken back.
    said = time_us[at] + rng.choice([-DAY_US, SECOND, DAY_US, 7 * DAY_US, 20 * DAY_US], len(at))
    exact = rng.random(len(at)) < 0.2
    said[exact] = rng.choice(time_us, int(exact.sum()))
    about = ids[at]
    about[rng.random(len(at)) < 0.05] = 10**9
    again = rng.choice(len(at), len(at) // 3)
    about = np.concatenate((about, about[again]))
    said = np.concatenate((said, said[again] + rng.choice([0, 0, SECOND, 3 * DAY_US], len(again))))
    by = np.argsort(said, kind="stable")
    reports = pa.table(
        {
            "transaction_id": pa.array([str(i) for i in about[by]]),
            "reported_at": pa.array(said[by], pa.int64()).cast(pa.timestamp("us", tz="UTC")),
            "fraud": pa.array(rng.random(len(by)) < 0.6),
            "scenario": pa.array(np.zeros(len(by)), pa.int32()),
        }
    )
    return transactions, reports


def written(folder: Path, tables: Tables) -> Path:
    with DatasetWriter(folder) as writer:
        for source, table in zip((TRANSACTION_FILES, FRAUD_REPORT_FILES), tables, strict=True):
            times = times_of(table, source.time_column)
            for day in np.unique(times // DAY_US).tolist():
                writer.write_day(source, day * DAY_US, table.filter(pa.array(times // DAY_US == day)))
        writer.finish({})
    return folder


def times_of(table: pa.Table, column: str) -> np.ndarray:
    return np.asarray(table.column(column).cast(pa.int64()).to_numpy())


def by_sql(tables: Tables) -> dict[str, list[float]]:
    """Every feature of every transaction, in order of (time, id): self-joins over the tables, window by window."""
    db = duckdb.connect()
    for name, table, column in (("tx", tables[0], "event_time"), ("said", tables[1], "reported_at")):
        us = pa.array(times_of(table, column), pa.int64())
        db.register(f"{name}_given", table.drop_columns([column]).append_column("us", us))
        db.execute(f"create table {name} as select * from {name}_given")
    db.execute("alter table tx add column n bigint")
    db.execute("update tx set n = transaction_id::bigint")
    rows = db.execute(
        """select n, amount, isodow(make_timestamp(us)) in (6, 7), hour(make_timestamp(us)) between 0 and 6
           from tx order by us, n"""
    ).fetchall()
    ids = [r[0] for r in rows]
    out = {
        "amount": [r[1] for r in rows],
        "is_weekend": [int(r[2]) for r in rows],
        "is_night": [int(r[3]) for r in rows],
    }
    for days in (1, 7, 30):
        found = db.execute(
            """select t.n, count(*), sum(o.amount) from tx t join tx o
               on o.customer_id = t.customer_id and o.us > t.us - $w and (o.us < t.us or (o.us = t.us and o.n <= t.n))
               group by t.n""",
            {"w": days * DAY_US},
        ).fetchall()
        sums = {n: (count, int(total)) for n, count, total in found}
        out[f"customer_count_{days}d"] = [sums[n][0] for n in ids]
        out[f"customer_mean_amount_{days}d"] = [float(sums[n][1]) / sums[n][0] for n in ids]
        found = db.execute(
            """with pair as (
                 select t.n as n, t.us as us, o.transaction_id as other from tx t join tx o
                 on o.terminal_id = t.terminal_id and o.us > t.us - $d - $w and o.us <= t.us - $d),
               known as (
                 select pair.n, pair.other, said.fraud,
                        row_number() over (partition by pair.n, pair.other order by said.us desc, said.fraud desc) as k
                 from pair join said on said.transaction_id = pair.other and said.us <= pair.us)
               select pair.n, count(*), count(known.other) from pair
               left join known on known.n = pair.n and known.other = pair.other and known.k = 1 and known.fraud
               group by pair.n""",
            {"w": days * DAY_US, "d": 7 * DAY_US},
        ).fetchall()
        shares = {n: (count, bad) for n, count, bad in found}
        out[f"terminal_count_{days}d"] = [shares.get(n, (0, 0))[0] for n in ids]
        out[f"terminal_fraud_share_{days}d"] = [
            bad / count if count else 0.0 for count, bad in (shares.get(n, (0, 0)) for n in ids)
        ]
    return out


@pytest.mark.parametrize("seed", range(2))
def test_every_feature_equals_sql(tmp_path: Path, seed: int) -> None:
    tables = random_tables(seed, 1_200)
    table = compute_features(PLAN, written(tmp_path / "data", tables))
    assert table.column_names == ["transaction_id", "event_time", "customer_id", "terminal_id", *PLAN.features]
    right = by_sql(tables)
    assert set(right) == set(PLAN.features)
    for name in ("transaction_id", "event_time", "customer_id", "terminal_id"):
        assert table.column(name).to_pylist() == tables[0].column(name).to_pylist()
    for name in PLAN.features:
        assert table.column(name).to_pylist() == right[name], name
    assert any(right["terminal_fraud_share_30d"])
    assert table.schema.field("customer_count_1d").type == pa.int64()
    assert table.schema.field("customer_mean_amount_1d").type == pa.float64()


@pytest.mark.parametrize(("from_day", "to_day"), [(40, 50), (40, None), (None, 20), (59, 60), (70, 80)])
def test_a_range_gives_the_same_rows(tmp_path: Path, from_day: int | None, to_day: int | None) -> None:
    """Also where the range begins in the middle of a second in which something happened."""
    path = written(tmp_path / "data", random_tables(3, 900))
    every = compute_features(PLAN, path)
    times = times_of(every, "event_time")
    low = None if from_day is None else int(times[np.searchsorted(times, FIRST_DAY + from_day * DAY_US) % len(times)])
    if from_day == 70:
        low = FIRST_DAY + 70 * DAY_US
    high = None if to_day is None else FIRST_DAY + to_day * DAY_US
    part = compute_features(PLAN, path, low, high)
    inside = np.ones(len(times), dtype=bool)
    if low is not None:
        inside &= times >= low
    if high is not None:
        inside &= times < high
    assert part.equals(every.filter(pa.array(inside)))


def test_a_dataset_without_reports_has_no_fraud(tmp_path: Path) -> None:
    transactions, reports = random_tables(4, 300)
    path = written(tmp_path / "data", (transactions, reports.slice(0, 0)))
    table = compute_features(PLAN, path)
    assert pc.sum(table.column("terminal_fraud_share_30d")).as_py() == 0
    assert pc.max(table.column("terminal_count_30d")).as_py() > 0


async def test_requests_get_the_same_vectors_to_the_bit(tmp_path: Path, redis_url: str) -> None:
    """All events in order through the gateway's reads, the worker behind by many, labels when they become known."""
    tables = random_tables(7, 700)
    offline = compute_features(PLAN, written(tmp_path / "data", tables))
    right = np.stack([np.asarray(offline.column(n).to_numpy(), dtype=np.float64) for n in PLAN.features], axis=1)
    rng = np.random.default_rng(7)
    rows = tables[0].to_pylist()
    times = times_of(tables[0], "event_time").tolist()
    entity_of = {str(r["transaction_id"]): i for i, r in enumerate(rows)}
    said = list(zip(times_of(tables[1], "reported_at").tolist(), tables[1].to_pylist(), strict=True))
    shards = 4
    with redis.Redis.from_url(redis_url) as client:
        writer = StateWriter(client, PLAN, "w")
        at = {}
        for entity in ("customer", "terminal"):
            writer.claim(entity, PLAN.topic_of(entity), "tid", range(shards))
            writer.heartbeat(entity, dict.fromkeys(range(shards), time.time_ns() // 1_000))
            at[entity] = dict.fromkeys(range(shards), 0)

        def apply(entity: str, some: list[int], parts: dict[int, list[EventColumns]]) -> None:
            updates = [
                ShardUpdate(s, at[entity][s], at[entity][s] + 1, max((times[i] for i in some), default=-1), 1, p)
                for s, p in parts.items()
            ]
            for done in writer.apply(entity, updates):
                assert (done.status, done.conflicts) == ("ok", ())
                at[entity][done.shard] = done.offset

        def absorb(some: list[int]) -> None:
            for entity in ("customer", "terminal"):
                parts: dict[int, list[EventColumns]] = {}
                for i in some:
                    key, one = rows[i][f"{entity}_id"], np.array([0])
                    amount = {"amount": one + rows[i]["amount"]}
                    part = EventColumns(
                        "transactions", [key], one, one + times[i], one + int(rows[i]["transaction_id"]), amount
                    )
                    parts.setdefault(shard_of(key, shards), []).append(part)
                apply(entity, some, parts)

        def tell(report: dict[str, object], known_us: int) -> None:
            i = entity_of.get(str(report["transaction_id"]))
            if i is None:
                return
            key, one = rows[i]["terminal_id"], np.array([0])
            value = {"value": one + int(bool(report["fraud"]))}
            part = EventColumns(
                "fraud_reports", [key], one, one + times[i], one + int(rows[i]["transaction_id"]), value, one + known_us
            )
            apply("terminal", [], {shard_of(key, shards): [part]})

        online = await OnlineFeatures.connect(redis_url, PLAN, shards, timeout_s=5.0)
        pending: list[int] = []
        begin = 0
        while begin < len(rows):
            batch = list(range(begin, min(len(rows), begin + int(rng.choice([1, 1, 2, 30])))))
            # A terminal's events count after seven days: the worker is never that far behind.
            if pending and (rng.random() < 0.05 or times[batch[-1]] - times[pending[0]] >= 6 * DAY_US):
                absorb(pending)
                pending = []
            if times[batch[-1]] - times[batch[0]] >= 6 * DAY_US:
                batch = batch[:1]
            while said and said[0][0] <= times[batch[-1]]:
                known_us, report = said.pop(0)
                tell(report, known_us)
            requests = [
                FeatureRequest(
                    rows[i]["transaction_id"],
                    times[i],
                    {"customer": rows[i]["customer_id"], "terminal": rows[i]["terminal_id"]},
                    {"amount": rows[i]["amount"]},
                    hashlib.md5(str(i).encode()).digest(),
                )
                for i in batch
            ]
            read = await online.read_and_append(requests)
            assert set(read.outcomes) == {Outcome.NEW}
            assert read.vectors.tobytes() == right[batch].astype(np.float32).tobytes()
            pending += batch
            begin = batch[-1] + 1
        await online.close()
