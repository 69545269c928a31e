"""The nightly job `card-risk`: each customer's and each terminal's risk, from the model's scores of their last 30 days.

Keys are `customer:42` and `terminal:17`. Every transaction of the window is scored with the features of its own moment
(labels as known then); the scores are added up as whole numbers, shrunken and calibrated by what the release's policy
says (`models.fraud.card_risk`), in arithmetic that gives the same bits as training's.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, cast

from batch_scorer.errors import JobError
from batch_scorer.job import BatchJob, Checks, Need, Output, plan_features
from batch_scorer.scoring import ModuleScoring
from model_release.odds import LEAST, MOST

from models.fraud.card_risk import ENTITIES, JOB_NAME, QUANTUM, WINDOW_DAYS
from models.fraud.features import PLAN
from models.fraud.sources import FRAUD_REPORT_FILES, TRANSACTION_FILES

if TYPE_CHECKING:
    from batch_scorer.inputs import Inputs
    from model_release import Release
    from model_release.manifest import Prior
    from pyspark.sql import Column, DataFrame

_KEY_OF = {entity.name: entity.key for entity in PLAN.entities}
_COLUMNS = ("transaction_id", "event_time", "customer_id", "terminal_id", "amount")


def population(inputs: Inputs) -> DataFrame:
    """One row an entity with a transaction in the window: `key`."""
    from pyspark.sql import functions as f

    events = inputs.events(TRANSACTION_FILES.folder)
    keys = f.array(*(_key(prior.entity) for prior in priors_of(inputs)))
    return events.select(f.explode(keys).alias("key")).distinct()


def transactions(inputs: Inputs, population: DataFrame) -> DataFrame:
    """The rows that the model scores: all transactions of the window."""
    return inputs.events(TRANSACTION_FILES.folder)


def risks(inputs: Inputs, population: DataFrame, scored: DataFrame) -> DataFrame:
    """`key` and the outputs, a row an entity. A transaction counts for its entities at once: it is scored but once."""
    from pyspark.sql import functions as f

    priors = priors_of(inputs)
    parts = f.floor(f.col("score").cast("double") * f.lit(QUANTUM) + f.lit(0.5))
    keys = f.explode(f.array(*(_key(prior.entity) for prior in priors)))
    sums = scored.select(keys.alias("key"), parts.alias("parts")).groupBy("key")
    found = sums.agg(f.sum("parts").alias("total"), f.count("*").cast("int").alias("transactions"))
    found = found.withColumn("mean", _of_each(priors, _mean))
    found = found.withColumn("root", _root(f.col("mean") / (f.lit(1.0) - f.col("mean"))))
    found = found.withColumn("odds", _of_each(priors, lambda p: f.lit(p.factor) * _power(f.col("root"), p.sixteenths)))
    chance = f.greatest(f.least(f.col("odds") / (f.lit(1.0) + f.col("odds")), f.lit(MOST)), f.lit(LEAST))
    found = found.withColumn("risk", chance.cast("float"))
    return found.select("key", "risk", "transactions", _of_each(priors, _level).alias("level"))


def _of_each(priors: tuple[Prior, ...], value: Callable[[Prior], Column]) -> Column:
    """By each row's key the value for its entity's prior."""
    from pyspark.sql import functions as f

    return f.coalesce(*(f.when(f.col("key").startswith(f"{p.entity}:"), value(p)) for p in priors))


def _mean(prior: Prior) -> Column:
    from pyspark.sql import functions as f

    total = f.lit(prior.strength * prior.mean) + f.col("total") / f.lit(QUANTUM)
    return total / (f.lit(prior.strength) + f.col("transactions"))


def _level(prior: Prior) -> Column:
    from pyspark.sql import functions as f

    risk = f.col("risk").cast("double")
    denied = f.when(risk >= prior.thresholds.deny, "deny")
    return denied.when(risk >= prior.thresholds.review, "review").otherwise("approve")


def priors_of(inputs: Inputs) -> tuple[Prior, ...]:
    """Of the release. Raises JobError where its policy has none."""
    release = cast("Release", inputs.release)
    batch = release.manifest.policy.batch
    if batch is None:
        raise JobError(
            f"job {JOB_NAME}: release {release.id} says nothing of batch scores (policy.batch); train one on data whose"
            " past scores tell something, with `trine train fraud`"
        )
    return batch.priors


def _key(entity: str) -> Column:
    from pyspark.sql import functions as f

    return f.concat(f.lit(f"{entity}:"), f.col(_KEY_OF[entity]))


def _root(odds: Column) -> Column:
    """The sixteenth root."""
    from pyspark.sql import functions as f

    return f.sqrt(f.sqrt(f.sqrt(f.sqrt(odds))))


def _power(root: Column, sixteenths: int) -> Column:
    """`model_release.odds.power` of the odds with this root, the same products in the same order."""
    from pyspark.sql import functions as f

    found = f.lit(1.0)
    for digit in f"{sixteenths:b}":
        found = found * found
        if digit == "1":
            found = found * root
    return found


JOB = BatchJob(
    name=JOB_NAME,
    model=PLAN.model,
    needs=(
        Need(TRANSACTION_FILES, _COLUMNS, back=timedelta(days=WINDOW_DAYS)),
        Need(FRAUD_REPORT_FILES, ("transaction_id", "reported_at", "fraud"), gaps=True),
    ),
    population=population,
    rows=transactions,
    features=plan_features,
    scoring=ModuleScoring("score"),
    combine=risks,
    outputs=(
        Output("risk", "float32", description="calibrated probability that the next transaction is fraud"),
        Output("transactions", "int32", description="of the last 30 days"),
        Output("level", "string", description="what the risk's own thresholds say: approve, review or deny"),
    ),
    checks=Checks(drift=("risk",)),
    description=f"The risk of every {' and '.join(ENTITIES)}, from the scores of their last 30 days.",
)
