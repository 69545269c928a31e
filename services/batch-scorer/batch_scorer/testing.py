"""Runs for tests of whoever reads predictions: published as a driver publishes, without Spark."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import pyarrow as pa
import redis

from batch_scorer.blocks import block_of, blocks_for, encode
from batch_scorer.job import KEY, Output
from batch_scorer.registry import Registry
from batch_scorer.runs import Run, block_key, new_run_id


def publish_toy_run(
    client: redis.Redis,
    job: str,
    cutoff_us: int,
    rows: Mapping[str, Mapping[str, object]],
    outputs: Sequence[Output],
    *,
    release: str = "toy-000000000000",
    max_age_s: int = 129_600,
    block_rows: int = 50,
    superseded_s: int = 3_600,
) -> Run:
    """Publish `rows`, key -> outputs by name, as a new run of `job`; also for an older cut-off than the current."""
    registry = Registry(client)
    name = new_run_id(job, cutoff_us)
    now_us = time.time_ns() // 1_000
    blocks = blocks_for(len(rows), block_rows)
    run = Run(name, job, cutoff_us, release, blocks, len(rows), tuple(outputs), max_age_s, created_us=now_us)
    lease = registry.acquire(job, name, 30.0, 5.0)
    registry.record(lease, run)
    content: list[list[dict[str, object]]] = [[] for _ in range(blocks)]
    for key, values in sorted(rows.items()):
        content[block_of(key, blocks)].append({KEY: key, **values})
    pipe = client.pipeline(transaction=False)
    for block, found in enumerate(content):
        pipe.set(block_key(name, block), encode(pa.RecordBatch.from_pylist(found, schema=run.schema)))
    pipe.execute()
    run = run.now(state="written", published_us=now_us)
    registry.publish(lease, run, force=True)
    registry.expire_others(run, superseded_s)
    registry.release(lease)
    return run
