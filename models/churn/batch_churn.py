"""The nightly job `churn`: of every customer seen in the last 90 days, how probably they will not come back."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from batch_scorer.job import BatchJob, Checks, Need, Output, plan_features
from batch_scorer.scoring import ModuleScoring

from models.churn.features import HORIZON_DAYS, PLAN, POPULATION_DAYS
from models.fraud.features import CUSTOMER
from models.fraud.sources import TRANSACTION_FILES

if TYPE_CHECKING:
    from batch_scorer.inputs import Inputs
    from pyspark.sql import DataFrame


def population(inputs: Inputs) -> DataFrame:
    """One row a customer: `key`, and what their features are asked for, at the last microsecond that counts."""
    from pyspark.sql import functions as f

    events = inputs.events(TRANSACTION_FILES.folder)
    at = f.timestamp_micros(f.lit(inputs.cutoff_us - 1))
    return (
        events.select(f.col(CUSTOMER.key).alias("key")).distinct().select(
            "key", f.col("key").alias(CUSTOMER.key), at.alias(TRANSACTION_FILES.time_column)
        )
    )  # fmt: skip


JOB = BatchJob(
    name="churn",
    model=PLAN.model,
    needs=(Need(TRANSACTION_FILES, ("event_time", "customer_id"), back=timedelta(days=POPULATION_DAYS)),),
    population=population,
    features=plan_features,
    scoring=ModuleScoring("probability"),
    outputs=(
        Output("probability", "float32", description=f"that there is no transaction in the next {HORIZON_DAYS} days"),
        Output("activity_count_30d", "int64", description="transactions of the last 30 days"),
    ),
    checks=Checks(drift=("probability",)),
    description=f"How probably each customer makes no transaction in the next {HORIZON_DAYS} days.",
)
