"""The job `recommendations` on a real Spark and Redis: what is published is what the release says of each history."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import redis
from batch_scorer.predictions import Predictions
from batch_scorer.runner import run_job
from batch_scorer.settings import BatchSettings
from feature_store.source_files import DAY_US, times_us
from model_release import open_release
from pyspark.sql import SparkSession

from models.recommender.batch_recommendations import DIMENSIONS, JOB, TOP
from models.recommender.generator import generate
from models.recommender.generator_parameters import GeneratorParameters
from models.recommender.interactions import load_table
from models.recommender.recipe import Recipe
from models.recommender.release_training import train_release
from models.recommender.scoring import HISTORY, Recommender

CUTOFF_US = 17_622 * DAY_US + 20 * DAY_US + DAY_US // 2


def test_every_user_gets_what_the_release_says(spark: SparkSession, redis_url: str, tmp_path: Path) -> None:
    warehouse = tmp_path / "warehouse"
    generate(GeneratorParameters(users=150, items=60, days=30, views=25.0, seed=1), warehouse)
    recipe = Recipe(epochs=2, least_steps=60, half_life_days=10.0)
    trained = train_release(warehouse, tmp_path / "releases", recipe, tuned=False, to_us=CUTOFF_US - 9 * DAY_US)
    settings = BatchSettings.model_validate(
        {
            "redis_url": redis_url, "warehouse": str(warehouse), "releases": tmp_path / "releases",
            "scratch": tmp_path / "scratch", "master": "local[2]", "driver_memory": "512m",
        }
    )  # fmt: skip
    manifest = run_job(JOB, CUTOFF_US, settings)

    histories: dict[str, list[dict[str, object]]] = {}
    table = load_table(warehouse, None, CUTOFF_US)
    for row, time in zip(table.to_pylist(), times_us(table, "event_time").tolist(), strict=True):
        entry = {name: row[name] for name in ("item_id", "kind", "value")}
        histories.setdefault(row["user_id"], []).append({**entry, "age_days": (CUTOFF_US - time) // DAY_US})
    assert manifest.rows == len(histories) > 100
    recommender = Recommender(open_release(trained.release.path, "recommender"))
    embeddings, rankings = recommender.recommend(pa.array(list(histories.values()), HISTORY), TOP)
    with redis.Redis.from_url(redis_url) as client:
        published = Predictions(client).read(JOB.name, list(histories)).values
    for place, found in enumerate(published):
        assert found is not None
        vector = np.asarray(found["embedding"], dtype=np.float32)
        assert vector.shape == (DIMENSIONS,)
        assert (vector.view(np.int32) == embeddings[place].view(np.int32)).all()
        assert found["items"] == rankings[place].as_py()
