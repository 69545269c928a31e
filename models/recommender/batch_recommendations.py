"""The nightly job `recommendations`: every user's embedding and best unseen items, as of the cut-off."""

from __future__ import annotations

from typing import TYPE_CHECKING

from batch_scorer.job import BatchJob, Checks, Need, Output
from feature_store.source_files import DAY_US

from models.recommender.recipe import Recipe
from models.recommender.scoring import RecommendationScoring
from models.recommender.sources import INTERACTION_FILES

if TYPE_CHECKING:
    from batch_scorer.inputs import Inputs
    from pyspark.sql import DataFrame

TOP = 20
DIMENSIONS = Recipe().dimensions + 1
"""Of the embeddings: those that the recipe learns, and one for the items' bias."""


def population(inputs: Inputs) -> DataFrame:
    """One row a user: `key` and `history`, their interactions before the cut-off."""
    from pyspark.sql import functions as f

    events = inputs.events(INTERACTION_FILES.folder)
    age = f.floor((f.lit(inputs.cutoff_us) - f.unix_micros("event_time")) / f.lit(DAY_US)).cast("int")
    entry = f.struct("item_id", age.alias("age_days"), "kind", "value")
    return events.groupBy(f.col("user_id").alias("key")).agg(f.collect_list(entry).alias("history"))


JOB = BatchJob(
    name="recommendations",
    model="recommender",
    needs=(Need(INTERACTION_FILES, ("user_id", "item_id", "event_time", "kind", "value"), gaps=True),),
    population=population,
    scoring=RecommendationScoring(TOP, DIMENSIONS),
    outputs=(
        Output("embedding", "vector", DIMENSIONS, "the user's; a score is its dot product with an item's"),
        Output("items", "ranking", description="the best items that the user has not had yet, best first"),
    ),
    checks=Checks(),
    description="Items for every user, from what they did until the cut-off.",
)
