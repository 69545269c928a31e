"""make bench-stream: events a second through a whole stream worker with the fraud views, and through a plain loop.

Kafka, Redis, worker and loop share this machine. Topics are filled before the clock starts. The worker's clock runs
from its first absorbed event until customer and terminal states hold everything; each run begins with no state.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

import psutil
from feature_store.definitions import FeaturePlan
from rich.console import Console
from rich.table import Table
from trine_cli.local.kafka_broker import KafkaBroker
from trine_cli.local.redis_server import RedisServer
from trine_cli.local.topics import create_topics

from benchmarks.stream import event_loop
from benchmarks.stream.preload import preload
from benchmarks.worker_process import WorkerProcess, cpu_s
from models.fraud.features import PLAN

SHARDS = 64


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench-stream", description=__doc__)
    parser.add_argument("--events", type=int, default=500_000, help="events of a worker's run")
    parser.add_argument("--loop-events", type=int, default=10_000, help="events of a run of the plain loop")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    console = Console(stderr=False)
    with tempfile.TemporaryDirectory(prefix="trine-bench-") as folder:
        root = Path(folder)
        with KafkaBroker(root / "kafka") as kafka, RedisServer(root / "redis") as store:
            kafka.create_topics(SHARDS)
            console.print(f"{options.events:,} events, {psutil.cpu_count()} cores; filling topics …")
            reports = preload(kafka.bootstrap, options.events, SHARDS)
            worker, costs, loop = [], [], []
            for run in range(options.runs):
                rate, cost = _worker_run(root, kafka, store, run, options.events, reports)
                worker.append(rate)
                costs.append(cost)
                loop.append(_loop_run(kafka, store, run, options.loop_events))
                console.print(f"run {run + 1}: worker {rate:,.0f}/s, loop {loop[-1]:,.0f}/s")
    _print(console, worker, costs, loop)


def _worker_run(
    root: Path, kafka: KafkaBroker, store: RedisServer, run: int, events: int, reports: int
) -> tuple[float, dict[str, float]]:
    """Events a second, and CPU microseconds an event by process."""
    plan = _plan(run)
    topic = plan.topic_of(plan.entities[1].name)
    create_topics(kafka.bootstrap, SHARDS, names=(topic,))
    with store.connect() as client:
        client.flushall()
    settings = {"KAFKA_BOOTSTRAP": kafka.bootstrap, "REDIS_URL": store.url, "SHARDS": SHARDS}
    worker = WorkerProcess(root, f"bench-{run}", plan, settings)
    processes = {
        "worker": worker.process,
        "redis": psutil.Process(store.pid or 0),
        "kafka": psutil.Process(kafka.pid or 0),
    }
    try:
        first = worker.wait("absorbed", 1)
        spent = {name: cpu_s(p) for name, p in processes.items()}
        last = worker.wait("absorbed", 2 * events + reports)
        costs = {name: (cpu_s(p) - spent[name]) * 1e6 / (events - first[1] / 2) for name, p in processes.items()}
        rate = (2 * events + reports - first[1]) / 2 / (last[0] - first[0])
    finally:
        worker.stop()
    return rate, costs


def _plan(run: int) -> FeaturePlan:
    """The fraud plan, its re-keyed topic named anew so that a run finds it empty."""
    views = tuple(
        replace(v, entity=replace(v.entity, name=f"{v.entity.name}-{run}")) if v.rekeyed else v for v in PLAN.views
    )
    return FeaturePlan(PLAN.model, PLAN.source, PLAN.request_features, views, PLAN.max_step)


def _loop_run(kafka: KafkaBroker, store: RedisServer, run: int, events: int) -> float:
    with store.connect() as client:
        client.flushall()
    return event_loop.events_per_second(kafka.bootstrap, store.url, f"loop-{run}", events)


def _print(console: Console, worker: list[float], costs: list[dict[str, float]], loop: list[float]) -> None:
    table = Table(title="stream worker, customer and terminal views")
    for name in ("side", "events/s (median)", "lowest", "highest", "CPU µs/event: worker", "redis", "kafka"):
        table.add_column(name, justify="left" if name == "side" else "right")
    cost = {name: statistics.median(c[name] for c in costs) for name in costs[0]}
    table.add_row(
        "trine worker",
        *(f"{v:,.0f}" for v in (statistics.median(worker), min(worker), max(worker))),
        *(f"{cost[name]:.1f}" for name in ("worker", "redis", "kafka")),
    )
    table.add_row(
        "event-by-event loop", *(f"{v:,.0f}" for v in (statistics.median(loop), min(loop), max(loop))), "", "", ""
    )
    console.print(table)
    result = {
        "events_per_s": round(statistics.median(worker)),
        "events_per_s_runs": [round(v) for v in worker],
        "loop_events_per_s": round(statistics.median(loop)),
        "vs_loop": round(statistics.median(worker) / statistics.median(loop), 1),
        "cpu_us_per_event": {name: round(v, 2) for name, v in cost.items()},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
