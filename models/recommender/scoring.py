"""A release at work: histories in, users' embeddings and their best unseen items out; nothing of training is needed.

`Recommender` takes arrays, `RecommendationScoring` the rows of a batch job. Memory is bounded: a batch's histories and
the scores of a block of users.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from model_release import ReleaseError, open_release
from model_release.recommender import RecommenderRelease
from model_release.retrieval import NOTHING, Ranking, top_unseen
from model_release.user_tower import load_tower
from numpy.typing import NDArray

from models.recommender.histories import Histories, group, weigh

HISTORY = pa.list_(
    pa.struct(
        [
            pa.field("item_id", pa.string()),
            pa.field("age_days", pa.int32()),
            pa.field("kind", pa.string()),
            pa.field("value", pa.float64()),
        ]
    )
)
"""A user's interactions before the cut-off, in any order; age_days: whole days before it."""
RANKING = pa.list_(pa.struct([pa.field("item", pa.string()), pa.field("score", pa.float32())]))


class Recommender:
    """A loaded release.

    Embeddings of a user do not depend on the others in the batch, nor on the order of the history, to the bit; ranks
    are exact, and of equal scores the item first in the release's order comes first (`model_release.retrieval`).
    """

    def __init__(self, release: RecommenderRelease) -> None:
        self.release = release
        self._tower = load_tower(release.module_path)
        self._item_ids = pa.array(release.item_ids, pa.string())
        self._typical = release.manifest.history.typical_values

    def histories(
        self,
        users: int,
        user: NDArray[np.int64],
        # Any: string columns.
        item_ids: pa.Array[Any],
        age_days: NDArray[np.int64],
        kinds: pa.Array[Any],
        values: NDArray[np.float64],
    ) -> Histories:
        """Of `users` users, from n interactions, user[k] saying whose; items that the release does not know are left
        out, those with a value of 0 are seen and weigh nothing."""
        place = np.asarray(pc.fill_null(pc.index_in(item_ids, value_set=self._item_ids), -1).to_numpy(), np.int64)
        known = place >= 0
        typical = np.ones(len(values))
        for kind, value in self._typical.items():
            typical[pc.fill_null(pc.equal(kinds, kind), False).to_numpy(zero_copy_only=False)] = value
        relative = values / typical if self._typical else np.where(values > 0, 1.0, 0.0)
        weight = weigh(self.release.manifest.history, age_days, relative)
        return group(users, user[known], place[known], weight[known])

    def embed(self, histories: Histories) -> NDArray[np.float32]:
        """float32 [n, D]; a score is the dot product with an item's embedding."""
        return self._tower(histories.items, histories.weights, histories.starts)

    def rank(self, embeddings: NDArray[np.float32], histories: Histories, top: int) -> Ranking:
        """The best `top` items that are not in the histories, as places in `release.item_ids`."""
        return top_unseen(embeddings, self.release.item_embeddings, histories.items, histories.starts, top)

    def recommend(self, history: pa.Array[Any], top: int) -> tuple[NDArray[np.float32], pa.Array[Any]]:
        """(embeddings float32 [n, D], rankings of type RANKING) for n users' interactions, a column of type HISTORY.

        A user without a history, null or empty, gets what is liked by all.
        """
        lengths = pc.fill_null(pc.list_value_length(history), 0).to_numpy()
        entries = history.flatten()
        item_ids, age_days, kinds, values = (entries.field(name) for name in ("item_id", "age_days", "kind", "value"))
        histories = self.histories(
            len(history),
            np.repeat(np.arange(len(history)), lengths),
            item_ids,
            np.asarray(age_days.to_numpy(), dtype=np.int64),
            kinds,
            np.asarray(values.to_numpy(), dtype=np.float64),
        )
        embeddings = self.embed(histories)
        return embeddings, self.ranking_column(self.rank(embeddings, histories, top))

    def ranking_column(self, ranking: Ranking) -> pa.Array[Any]:
        """A ranking as a column of type RANKING."""
        there = ranking.items != NOTHING
        offsets = np.concatenate([[0], np.cumsum(there.sum(axis=1))]).astype(np.int32)
        items = self._item_ids.take(pa.array(ranking.items[there]))
        entries = pa.StructArray.from_arrays([items, pa.array(ranking.scores[there])], fields=list(RANKING.value_type))
        return pa.ListArray.from_arrays(pa.array(offsets), entries)


@dataclass(frozen=True, slots=True)
class RecommendationScoring:
    """How a batch job scores users with this model: rows with `history` get `embedding` and `items`.

    Small and pickled to executors. `top`: items a user; `dimensions`: of releases that the job can publish.
    """

    top: int
    dimensions: int

    @property
    def adds(self) -> Mapping[str, pa.DataType]:
        return {"embedding": pa.list_(pa.float32()), "items": RANKING}

    def open(self, folder: Path) -> RecommenderRelease:
        """Verifies the folder. Raises ReleaseError, also for embeddings of another length than the job publishes."""
        release = open_release(folder, "recommender")
        if release.manifest.dimensions != self.dimensions:
            raise ReleaseError(
                f"{folder}: embeddings of length {release.manifest.dimensions}, the job publishes {self.dimensions}"
            )
        return release

    def load(self, folder: Path) -> Score:
        """The release, ready to score batches."""
        return Score(_loaded(self, folder), self.top)

    def golden(self, folder: Path) -> str:
        """Runs the golden histories; what differs, in one sentence, or an empty text."""
        from model_release.recommender_writer import golden_difference

        return golden_difference(self.open(folder))


@functools.cache
def _loaded(scoring: RecommendationScoring, folder: Path) -> Recommender:
    """A release, opened and loaded once in this process."""
    return Recommender(scoring.open(folder))


class Score:
    """Scores batches with a column `history` of type HISTORY: the columns of `RecommendationScoring.adds`."""

    def __init__(self, recommender: Recommender, top: int) -> None:
        self._recommender, self._top = recommender, top

    def __call__(self, rows: pa.RecordBatch) -> Sequence[pa.Array[Any]]:
        embeddings, items = self._recommender.recommend(rows.column("history"), self._top)
        offsets = np.arange(len(embeddings) + 1, dtype=np.int32) * embeddings.shape[1]
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(embeddings.ravel())), items
