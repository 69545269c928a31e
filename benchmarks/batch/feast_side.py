"""Feast's side, run by an interpreter that has Feast: `python feast_side.py PARQUET_FOLDER HOST:PORT FROM TO`.

Materialises two features of every entity from the same Parquet into Redis; prints the seconds of `materialize` alone.
"""

import json
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta

from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig  # type: ignore[import-not-found]
from feast.types import Float32, Int32  # type: ignore[import-not-found]
from feast.value_type import ValueType  # type: ignore[import-not-found]


def main(parquet: str, redis: str, first: str, last: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        config = RepoConfig(
            project="bench",
            registry=f"{folder}/registry.db",
            provider="local",
            online_store={"type": "redis", "connection_string": redis},
            offline_store={"type": "file"},
            entity_key_serialization_version=3,
        )
        store = FeatureStore(config=config)
        entity = Entity(name="entity", join_keys=["entity_id"], value_type=ValueType.STRING)
        view = FeatureView(
            name="predictions",
            entities=[entity],
            ttl=timedelta(days=30),
            schema=[Field(name="score", dtype=Float32), Field(name="visits", dtype=Int32)],
            source=FileSource(path=parquet, timestamp_field="event_time"),
        )
        store.apply([entity, view])
        began = time.perf_counter()
        store.materialize(datetime.fromtimestamp(float(first), UTC), datetime.fromtimestamp(float(last), UTC))
        print(json.dumps({"seconds": time.perf_counter() - began}))


if __name__ == "__main__":
    main(*sys.argv[1:])
