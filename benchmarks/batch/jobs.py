"""The benchmark's jobs: one that publishes what it reads, and one that scores it first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
from batch_scorer.job import BatchJob, Checks, Need, Output, Score
from batch_scorer.scoring import ModuleScoring
from feature_store.definitions import Count, FeaturePlan, FeatureView, Mean, RequestFeature, days

from benchmarks.batch.entities import FILES
from models.fraud.features import CUSTOMER, TRANSACTIONS

if TYPE_CHECKING:
    from batch_scorer.inputs import Inputs
    from pyspark.sql import DataFrame

PLAN = FeaturePlan(
    model="bench",
    source=TRANSACTIONS,
    request_features=(RequestFeature("amount", "field", "amount"),),
    views=(FeatureView("customer", CUSTOMER, TRANSACTIONS, (Count(), Mean("amount")), windows=days(30)),),
)


@dataclass(frozen=True)
class NoRelease:
    """What stands for a release where nothing is scored."""

    path: Path

    @property
    def id(self) -> str:
        return self.path.name


@dataclass(frozen=True)
class NoScoring:
    """The rows carry their outputs."""

    @property
    def adds(self) -> Mapping[str, pa.DataType]:
        return {}

    def open(self, folder: Path) -> NoRelease:
        return NoRelease(folder)

    def load(self, folder: Path) -> Score:
        return lambda batch: []

    def golden(self, folder: Path) -> str:
        return ""


def outputs(inputs: Inputs) -> DataFrame:
    """Key and the two outputs, as the files have them."""
    return inputs.events("entities").withColumnRenamed("entity_id", "key")


PUBLISH = BatchJob(
    name="bench-publish",
    model="bench",
    needs=(Need(FILES, ("entity_id", "score", "visits")),),
    population=outputs,
    scoring=NoScoring(),
    outputs=(Output("score"), Output("visits", "int32")),
    checks=Checks(golden=False),
    keep_population=False,
)
SCORE = BatchJob(
    name="bench-score",
    model="bench",
    needs=(Need(FILES, ("entity_id", *PLAN.features)),),
    population=outputs,
    scoring=ModuleScoring("score"),
    outputs=(Output("score"),),
    keep_population=False,
)
