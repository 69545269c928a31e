"""The benchmark's warehouse: so many entities in random order, one row each, with what a model reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from feature_store.source_files import DAY_US, TIME_TYPE, SourceFiles, day_name

FILES = SourceFiles(
    "entities",
    "entity_id",
    "event_time",
    pa.schema(
        {
            "entity_id": pa.string(),
            "event_time": TIME_TYPE,
            "score": pa.float32(),
            "visits": pa.int32(),
            "amount": pa.float32(),
            "customer_count_30d": pa.float32(),
            "customer_mean_amount_30d": pa.float32(),
        }
    ),
    required=True,
)
FIRST_DAY_US = 1_532_476_800_000_000
DAYS = 8
CUTOFF_US = FIRST_DAY_US + DAYS * DAY_US


def write_entities(folder: Path, entities: int, seed: int = 1) -> Path:
    """Writes the warehouse unless it is there: one file a day, an eighth of the entities in each."""
    target = folder / f"entities-{entities}"
    if (target / "entities").is_dir():
        return target
    rng = np.random.default_rng(seed)
    order = rng.permutation(entities)
    unfinished = folder / f".entities-{entities}"
    (unfinished / "entities").mkdir(parents=True, exist_ok=True)
    for day, part in enumerate(np.array_split(order, DAYS)):
        start, n = FIRST_DAY_US + day * DAY_US, len(part)
        times = np.sort(rng.integers(0, DAY_US, n)) + start
        columns = {
            "entity_id": pa.array([f"c{i:08d}" for i in part.tolist()]),
            "event_time": pa.array(times, pa.int64()).cast(TIME_TYPE),
            "score": rng.beta(1, 9, n).astype(np.float32),
            "visits": rng.integers(0, 500, n).astype(np.int32),
            "amount": rng.lognormal(8, 1, n).astype(np.float32).round(),
            "customer_count_30d": rng.integers(0, 100, n).astype(np.float32),
            "customer_mean_amount_30d": rng.lognormal(8, 1, n).astype(np.float32).round(),
        }
        table = pa.table(columns, schema=FILES.schema)
        pq.write_table(table, unfinished / "entities" / f"{day_name(start)}.parquet")
    unfinished.rename(target)
    return target
