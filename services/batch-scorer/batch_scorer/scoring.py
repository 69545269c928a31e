"""Scoring with a tabular release's own module, in the executors: loaded once a process, never by network."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from model_release.release import Release, open_release
from numpy.typing import NDArray

from batch_scorer.errors import JobError
from batch_scorer.job import Score

if TYPE_CHECKING:
    from model_release.scoring_module import ScoringModule


@dataclass(frozen=True, slots=True)
class ModuleScoring:
    """A release of `model_release`: its features are columns of the rows, by name; adds one float32 column.

    What the column is called: `name`.
    """

    name: str = "score"

    @property
    def adds(self) -> Mapping[str, pa.DataType]:
        return {self.name: pa.float32()}

    def open(self, folder: Path) -> Release:
        """Verifies every hash. Raises ReleaseError."""
        return open_release(folder)

    def load(self, folder: Path) -> Score:
        """Opens, verifies and loads the module. Raises ReleaseError; the score raises JobError for a missing column."""
        release, module = _loaded(folder)
        features = release.features

        def score(batch: pa.RecordBatch) -> list[pa.Array]:
            return (
                [pa.array(module(feature_matrix(batch, features)))] if batch.num_rows else [pa.nulls(0, pa.float32())]
            )

        return score

    def golden(self, folder: Path) -> str:
        """Empty where the golden rows score as recorded, to the bit."""
        release, module = _loaded(folder)
        found = module(np.ascontiguousarray(release.golden_inputs, dtype=np.float32))
        differ = np.flatnonzero(found.view(np.int32) != release.golden_scores.astype(np.float32).view(np.int32))
        if not len(differ):
            return ""
        row = int(differ[0])
        return (
            f"{len(differ)} of {len(found)} golden rows of {release.id} differ; row {row} scores {found[row]!r}, "
            f"recorded is {release.golden_scores[row]!r}"
        )


@functools.cache
def _loaded(folder: Path) -> tuple[Release, ScoringModule]:
    """A release and its module, opened once in this process."""
    from model_release.scoring_module import load

    return open_release(folder), load(folder)


def feature_matrix(batch: pa.RecordBatch, features: tuple[str, ...]) -> NDArray[np.float32]:
    """The named columns as float32 [n, F], in order. Raises JobError for a column that is missing or holds nulls."""
    matrix = np.empty((batch.num_rows, len(features)), dtype=np.float32)
    for i, name in enumerate(features):
        at = batch.schema.get_field_index(name)
        if at < 0:
            raise JobError(f"features: column {name!r} is missing; the rows have {', '.join(batch.schema.names)}")
        column = batch.column(at)
        if column.null_count:
            raise JobError(f"features: column {name!r} has {column.null_count} nulls; every row needs a value")
        matrix[:, i] = column.to_numpy(zero_copy_only=False)
    return matrix
