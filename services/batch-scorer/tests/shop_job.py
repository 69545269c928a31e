"""A tiny example of a batch job: every customer with a purchase before the cut-off, scored by what they spent.

Read by the runner's tests; a real job lives beside its model, in `models/<name>/batch_<job>.py`.
"""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
from batch_scorer.job import BatchJob, Checks, Need, Output, Score
from batch_scorer.scoring import ModuleScoring
from feature_store.definitions import Count, FeaturePlan, FeatureView, Mean, RequestFeature, days

from models.fraud.features import CUSTOMER, TRANSACTIONS
from models.fraud.sources import TRANSACTION_FILES

if TYPE_CHECKING:
    from batch_scorer.inputs import Inputs
    from pyspark.sql import DataFrame

#: What its releases are made for.
PLAN = FeaturePlan(
    model="shop",
    source=TRANSACTIONS,
    request_features=(RequestFeature("amount", "field", "amount"),),
    views=(FeatureView("customer", CUSTOMER, TRANSACTIONS, (Count(), Mean("amount")), windows=days(30)),),
)


def population(inputs: Inputs) -> DataFrame:
    """One row a customer: `key` and their events of the last 30 days as the model's features."""
    from pyspark.sql import functions as f

    events = inputs.events("transactions")
    return events.groupBy(f.col("customer_id").alias("key")).agg(
        f.max("amount").cast("float").alias("amount"),
        f.count("*").cast("float").alias("customer_count_30d"),
        f.avg("amount").cast("float").alias("customer_mean_amount_30d"),
    )


JOB = BatchJob(
    name="shop",
    model="shop",
    needs=(Need(TRANSACTION_FILES, ("customer_id", "amount"), back=timedelta(days=30)),),
    population=population,
    scoring=ModuleScoring("score"),
    outputs=(
        Output("score", "float32", description="what the toy network thinks of the customer"),
        Output("customer_mean_amount_30d", "float32", description="of their purchases in 30 days"),
    ),
    checks=Checks(max_psi=0.25, drift=("score",)),
    description="An example: customers by what they spent in 30 days.",
)


def without_some(inputs: Inputs, population: DataFrame, scored: DataFrame) -> DataFrame:
    """A `combine` that forgets every key that begins with 1."""
    return scored.where("key not like '1%'")


def one_amount_for_all(inputs: Inputs, rows: DataFrame) -> DataFrame:
    """Features that say the same of everybody, as after a join that found nothing."""
    from pyspark.sql import functions as f

    return rows.select("key", *(f.lit(1.0).cast("float").alias(name) for name in PLAN.features))


@dataclass(frozen=True)
class Halved(ModuleScoring):
    """Half of a feature in place of the module, for tests about what is around it: no torch to load."""

    def load(self, folder: Path) -> Score:
        return lambda batch: [pc.divide(batch.column("amount"), 2.0).cast(pa.float32())]

    def golden(self, folder: Path) -> str:
        return ""


@dataclass(frozen=True)
class KillsItsWorker(Halved):
    """At each try of a task the worker dies as by kill -9, in the middle of a batch."""

    def load(self, folder: Path) -> Score:
        def score(batch: pa.RecordBatch) -> list[pa.Array]:
            os.kill(os.getpid(), signal.SIGKILL)
            return []

        return score


@dataclass(frozen=True)
class WaitsOnce(Halved):
    """The first worker that scores makes the file `mark` and waits for somebody to kill it; all others score."""

    mark: str = ""

    def load(self, folder: Path) -> Score:
        def score(batch: pa.RecordBatch) -> list[pa.Array]:
            with contextlib.suppress(FileExistsError):
                Path(self.mark).touch(exist_ok=False)
                while True:
                    signal.pause()
            return list(Halved.load(self, folder)(batch))

        return score


QUICK = replace(JOB, scoring=Halved("score"))


def waiting(mark: Path) -> BatchJob:
    """QUICK, but for one worker that waits to be killed."""
    return replace(QUICK, scoring=WaitsOnce("score", str(mark)))


@dataclass(frozen=True)
class WrongGolden(ModuleScoring):
    """Scoring on a machine that computes otherwise than the one that wrote the release."""

    def golden(self, folder: Path) -> str:
        return "1 of 256 golden rows differ"
