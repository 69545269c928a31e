"""make bench-archive: events a second from Kafka to the warehouse by the worker's role archive, and by a plain loop.

Transactions of 60 days and a decision for each lie on Kafka before the clock starts. The worker's clock runs from its
first written chunk until everything is in the warehouse and committed. Then a worker follows a steady trickle, for what
it costs beside others on a small machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from confluent_kafka import Consumer, Producer
from feature_store.sharding import shard_of
from feature_store.warehouse import Warehouse
from google.protobuf.json_format import MessageToDict
from rich.console import Console
from rich.table import Table
from stream_worker.archive_topics import ArchivedTopic, archived_topics
from trine.events.v1.events_pb2 import DecisionRecord, ScoreSource, Transaction, Verdict
from trine_cli.local.kafka_broker import KafkaBroker

from benchmarks.stream.preload import START_US, preload
from benchmarks.worker_process import WorkerProcess, cpu_s
from models.fraud.features import PLAN, TRANSACTIONS

SHARDS = 64
DECISIONS = "trine.decisions"
TRICKLE_PER_S = 300
LOOP_FILE_ROWS = 20_000


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench-archive", description=__doc__)
    parser.add_argument("--events", type=int, default=500_000, help="transactions, and as many decisions")
    parser.add_argument("--loop-events", type=int, default=100_000, help="events of a run of the plain loop")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    console = Console()
    worker: list[float] = []
    costs: list[float] = []
    loop: list[float] = []
    with tempfile.TemporaryDirectory(prefix="trine-bench-") as folder, KafkaBroker(Path(folder) / "kafka") as kafka:
        root = Path(folder)
        kafka.create_topics(SHARDS)
        console.print(f"{options.events:,} transactions and decisions, {psutil.cpu_count()} cores; filling topics …")
        rows = options.events + preload(kafka.bootstrap, options.events, SHARDS)
        rows += _decide(kafka.bootstrap, options.events)
        for run in range(options.runs):
            rate, cost = _worker_run(root, kafka, run, rows)
            worker.append(rate)
            costs.append(cost)
            loop.append(_loop_run(kafka.bootstrap, root, run, options.loop_events))
            console.print(f"run {run + 1}: worker {rate:,.0f}/s, loop {loop[-1]:,.0f}/s")
        trickle = _trickle(root, kafka)
    _print(console, worker, costs, loop, trickle)


def _decide(bootstrap: str, count: int) -> int:
    """A decision on each transaction, as large as the gateway's are."""
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 50, "queue.buffering.max.messages": 1_000_000})
    record = DecisionRecord(score=0.01, release="fraud-3f9c2a71d0e4")
    record.verdict, record.source = Verdict.VERDICT_APPROVE, ScoreSource.SCORE_SOURCE_MODEL
    record.transaction.CopyFrom(Transaction(terminal_id="77", amount=1234, currency="EUR"))
    record.vector.extend(float(n) / 3 for n in range(15))
    for view in ("customer", "terminal"):
        record.inputs.add(view=view, entity=view, topic=f"trine.by-{view}", topic_id="s4mPl3T0p1cId000000000")
    for i in range(count):
        key = str(i % 5_000)
        record.decision_id = record.transaction.transaction_id = str(i)
        record.decided_at_us = record.transaction.event_time_us = START_US + i * 10_000_000
        record.transaction.customer_id = record.inputs[0].key = key
        record.inputs[0].offset = record.inputs[1].offset = i
        while True:
            try:
                producer.produce(DECISIONS, record.SerializeToString(), key=key, partition=shard_of(key, SHARDS))
                break
            except BufferError:
                producer.poll(0.1)
        if i % 10_000 == 0:
            producer.poll(0)
    if producer.flush(60):
        raise RuntimeError(f"{bootstrap} did not take all decisions within a minute")
    return count


def _worker(root: Path, kafka: KafkaBroker, name: str, age_s: float) -> WorkerProcess:
    settings = {
        "ROLE": "archive",
        "WAREHOUSE": root / name,
        "KAFKA_BOOTSTRAP": kafka.bootstrap,
        "SHARDS": SHARDS,
        "ARCHIVE_ROWS": 200_000,
        # What is left at the end should not have to grow old.
        "ARCHIVE_AGE_S": age_s,
    }
    return WorkerProcess(root, name, PLAN, settings)


def _worker_run(root: Path, kafka: KafkaBroker, run: int, rows: int) -> tuple[float, float]:
    """Events a second, and CPU microseconds an event. Fails where the reader does not give every event once."""
    worker = _worker(root, kafka, f"worker-{run}", age_s=3.0)
    try:
        first = worker.wait("archived", 1)
        spent = cpu_s(worker.process)
        last = worker.wait("archived", rows)
        cost = (cpu_s(worker.process) - spent) * 1e6 / (last[1] - first[1])
    finally:
        worker.stop()
    warehouse = Warehouse(root / f"worker-{run}")
    found = sum(warehouse.load(t.files, columns=[t.files.id_column]).num_rows for t in _read_topics())
    if found != rows:
        raise RuntimeError(f"the warehouse holds {found:,} events, not {rows:,}")
    return (last[1] - first[1]) / (last[0] - first[0]), cost


def _read_topics() -> list[ArchivedTopic]:
    return [t for t in archived_topics(PLAN) if t.descriptor is not None]


def _loop_run(bootstrap: str, root: Path, run: int, events: int) -> float:
    """What one writes first: a message, a dictionary, a file every so often. At most once, or twice after a crash.

    Half of the events are transactions and half decisions, one topic after the other.
    """
    seconds = 0.0
    for topic, kind in ((TRANSACTIONS.topic, Transaction), (DECISIONS, DecisionRecord)):
        consumer = Consumer(
            {"bootstrap.servers": bootstrap, "group.id": f"loop-{run}", "auto.offset.reset": "earliest"}
        )
        consumer.subscribe([topic])
        began, done = 0.0, 0
        rows: list[dict[str, object]] = []
        while done < events // 2:
            message = consumer.poll(1.0)
            if message is None or message.error():
                continue
            began = began or time.perf_counter()
            rows.append(MessageToDict(kind.FromString(message.value() or b"")))
            done += 1
            if len(rows) >= LOOP_FILE_ROWS or done == events // 2:
                file = root / f"loop-{run}-{topic}-{done}.parquet"
                pq.write_table(pa.Table.from_pylist(rows), file, compression="zstd")
                rows = []
        seconds += time.perf_counter() - began
        consumer.close()
    return events // 2 * 2 / seconds


def _trickle(root: Path, kafka: KafkaBroker) -> float:
    """Share of a core that a worker takes while 2 * TRICKLE_PER_S records come in each second."""
    worker = _worker(root, kafka, "worker-0", age_s=10.0)
    try:
        # Its start, and what came since it last ran, are not part of it.
        _decide(kafka.bootstrap, TRICKLE_PER_S)
        worker.wait("archived", 1)
        spent, began = cpu_s(worker.process), time.monotonic()
        for _ in range(30):
            _decide(kafka.bootstrap, 2 * TRICKLE_PER_S)
            time.sleep(1.0)
        return (cpu_s(worker.process) - spent) / (time.monotonic() - began)
    finally:
        worker.stop()


def _print(console: Console, worker: list[float], costs: list[float], loop: list[float], trickle: float) -> None:
    table = Table(title="Kafka to Parquet: transactions, fraud reports and decisions")
    for name in ("side", "events/s (median)", "lowest", "highest", "CPU µs/event"):
        table.add_column(name, justify="left" if name == "side" else "right")
    middle = statistics.median(worker), min(worker), max(worker)
    table.add_row("trine worker", *(f"{v:,.0f}" for v in middle), f"{statistics.median(costs):.1f}")
    middle = statistics.median(loop), min(loop), max(loop)
    table.add_row("event-by-event loop", *(f"{v:,.0f}" for v in middle), "")
    console.print(table)
    console.print(f"at {2 * TRICKLE_PER_S} records/s the worker takes {trickle:.1%} of a core")
    result = {
        "events_per_s": round(statistics.median(worker)),
        "events_per_s_runs": [round(v) for v in worker],
        "loop_events_per_s": round(statistics.median(loop)),
        "vs_loop": round(statistics.median(worker) / statistics.median(loop), 1),
        "cpu_us_per_event": round(statistics.median(costs), 2),
        "core_share_at_600_per_s": round(trickle, 4),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
