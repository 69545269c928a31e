"""make bench-realtime: Trine's gateway beside TorchServe alone and beside a service of one's own, in one run.

Every system runs on the same cores with the same model and the same load generator, one after the other within each
round, so that a noisy minute hits all of them; figures are medians over the rounds. Only answers by the model count.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import redis
from feature_store.rebuild import rebuild
from feature_store.source_files import DAY_US
from model_release import open_release
from model_release.testing import write_toy_release
from rich.console import Console
from rich.table import Table
from trine_cli.local.stack import ARCHIVE, FEATURES, Stack, StackOptions
from trine_cli.local.torchserve import TorchServe

from benchmarks.realtime.onnx_export import export_onnx
from models.fraud.features import PLAN
from models.fraud.sources import load_transactions

ROUNDS = 3
SECONDS = 6.0
DAYS = 40
#: As on one machine: the broker has this one's cores too, and every partition costs it requests of its own.
SHARDS = 16
WARM_UP_S = 4.0

Figures = dict[str, float]


def load(target: str, **options: object) -> Figures:
    """One run of the load generator with its options, in its own process."""
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.realtime.load", f"--target={target}", *arguments],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(f"the load generator failed:\n{done.stderr[-2000:]}")
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


@contextmanager
def in_process_service(redis_url: str, model: Path) -> Iterator[str]:
    """The rival with ONNX Runtime; yields HOST:PORT."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.realtime.in_process_service",
         f"--redis-url={redis_url}", f"--model={model}"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        yield f"127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.terminate()
        process.wait(30)


def register(server: TorchServe, archive: Path, name: str, batch: int, delay_ms: int) -> None:
    """Make TorchServe serve the archive under `name`, with its own batching where `batch` is above one."""
    # TorchServe keeps one file of a name.
    copy = Path(shutil.copy(archive, server.folder / f"{name}.mar"))
    answer = httpx.post(
        f"{server.management_url}/models",
        params={
            "url": copy.resolve().as_uri(), "model_name": name, "batch_size": batch, "max_batch_delay": delay_ms,
            "initial_workers": 1, "synchronous": "true",
        },
        timeout=120,
    )  # fmt: skip
    if answer.status_code != 200:
        raise RuntimeError(f"TorchServe refused {name}: {answer.text}")


def redis_round_trip_ms(url: str) -> float:
    """Median of a GET, as a service waits for it."""
    import time

    client = redis.Redis.from_url(url)
    seconds = []
    for _ in range(500):
        began = time.perf_counter()
        client.get("features:customer:1")
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds) * 1e3


def medians(runs: list[Figures]) -> Figures:
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def measure(releases: Path, release: str, dataset: Path, work: Path, rounds: int, seconds: float) -> dict[str, Figures]:
    """All systems, `rounds` times in turn; medians by system and shape."""
    folder = releases / release
    opened = open_release(folder)
    plan, features = opened.plan, len(opened.plan.features)
    onnx = work / "model.onnx"
    same = export_onnx(folder, onnx)
    Console(stderr=True).print(f"ONNX Runtime repeats {same:.1%} of the golden scores to the bit")
    events = load_transactions(dataset)
    customers, terminals = (len(events.column(name).unique()) for name in ("customer_id", "terminal_id"))
    end_us = int(events.column("event_time")[-1].value) // DAY_US * DAY_US
    source: dict[str, object] = {"customers": customers, "terminals": terminals}
    runs: dict[str, list[Figures]] = {}
    seed = 0

    with Stack(StackOptions(releases, release=release, shards=SHARDS)) as stack:
        client = redis.Redis.from_url(stack.redis_url)
        # Neither answers nor records: the archive fills the warehouse, the feature store shows state to people.
        for bystander in (ARCHIVE, FEATURES):
            stack.stop(bystander)
        stack.stop("worker")
        rebuild(client, plan, dataset, end_us, SHARDS, at_once=True)
        stack.restart("worker")
        stack.restart("gateway")
        # One TorchServe for all, so that its virtual machine is as warm for the gateway as for who calls it directly.
        server = stack.model_server
        assert server is not None
        archive = next(folder.glob("*.mar"))
        register(server, archive, "single", 1, 1)
        for batch, delay in BATCHINGS:
            register(server, archive, f"batch{batch}", batch, delay)
        with in_process_service(stack.redis_url, onnx) as in_process:
            trine: dict[str, Any] = {**source, "start_us": end_us}  # Any: options of the load generator
            direct = {"system": "torchserve", "features": features}

            def run(name: str, target: str, **options: object) -> None:
                nonlocal seed
                seed += 1
                Console(stderr=True).print(f"  {name}", style="dim")
                settings = {"seconds": seconds, "seed": seed, **options}
                runs.setdefault(name, []).append(load(target, **settings))

            for target, options in (
                (stack.grpc, trine),
                (in_process, trine),
                (server.inference, {**direct, "model": "single"}),
            ):
                run("warm-up", target, in_flight=64, **{**options, "seconds": WARM_UP_S})
            for _ in range(rounds):
                for flight in (1, 64):
                    run(f"trine unary {flight}", stack.grpc, in_flight=flight, **trine)
                    run(f"in-process unary {flight}", in_process, in_flight=flight, **trine)
                    run(f"torchserve unary {flight}", server.inference, in_flight=flight, model="single", **direct)
                for batch, _ in BATCHINGS:
                    run(f"torchserve batch{batch}", server.inference, in_flight=256, model=f"batch{batch}", **direct)
                run("trine bulk", stack.grpc, shape="bulk", in_flight=6, **trine)
                runs.setdefault("redis", []).append({"p50_ms": redis_round_trip_ms(stack.redis_url)})
            capacity = statistics.median(r["per_second"] for r in runs["trine unary 64"])
            for _ in range(rounds):
                run("trine open 80%", stack.grpc, rate=round(capacity * 0.8), timeout=0.1, **trine)
    runs.pop("warm-up")
    return {name: medians(found) for name, found in runs.items()}


#: TorchServe's own batching: (batch size, longest wait in ms); the best of them is the rival.
BATCHINGS = ((16, 2), (64, 5), (128, 10))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--releases", type=Path, help="folder of releases; without it, random weights of toy size")
    parser.add_argument("--release", help="id of the release in --releases")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="trine-bench-") as folder:
        work = Path(folder)
        dataset = work / "dataset"
        trine = [sys.executable, "-m", "trine_cli.main", "data", "generate", f"--days={DAYS}", f"--out={dataset}"]
        subprocess.run(trine, check=True, stdout=sys.stderr)
        releases = options.releases or work / "releases"
        release = options.release or write_toy_release(releases, PLAN).id
        found = measure(releases, release, dataset, work, options.rounds, options.seconds)
    report(found)


def report(found: dict[str, Figures]) -> None:
    """The table, and as the last line the ratios as JSON."""
    table = Table("system", "answers by the model a second", "p50 ms", "p99 ms", "p99.9 ms", title="Real time")
    for name, f in found.items():
        if name != "redis":
            cells = (f"{f[k]:,.2f}" for k in ("p50_ms", "p99_ms", "p999_ms"))
            table.add_row(name, f"{f['per_second']:,.0f}", *cells)
    Console().print(table)
    own_batching = max(f["per_second"] for name, f in found.items() if name.startswith("torchserve batch"))
    alone_ms = found["torchserve unary 1"]["p50_ms"] + found["redis"]["p50_ms"]
    ratios = {
        "unary_vs_unbatched": found["trine unary 64"]["per_second"] / found["torchserve unary 64"]["per_second"],
        "unary_vs_in_process": found["trine unary 64"]["per_second"] / found["in-process unary 64"]["per_second"],
        "bulk_vs_own_batching": found["trine bulk"]["per_second"] / own_batching,
        "p50_ratio_one_client": found["trine unary 1"]["p50_ms"] / alone_ms,
        "p99_ms_at_80_percent": found["trine open 80%"]["p99_ms"],
    }
    print(json.dumps({name: round(value, 3) for name, value in ratios.items()}))


if __name__ == "__main__":
    main()
