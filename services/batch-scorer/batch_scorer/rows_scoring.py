"""What executors do to score: the release is loaded once in each process; Arrow batches in, Arrow batches out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from batch_scorer.job import Score, Scoring

_loaded: dict[tuple[str, str], Score] = {}


def loaded(scoring: Scoring, folder: str) -> Score:
    """A release ready to score, loaded once in this process."""
    name = (repr(scoring), folder)
    if name not in _loaded:
        _loaded[name] = scoring.load(Path(folder))
    return _loaded[name]


@dataclass(frozen=True, slots=True)
class Scorer:
    """Adds the columns of `scoring` to batches of rows; a column of the rows with the same name is replaced."""

    scoring: Scoring
    folder: str

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        score = None
        adds = dict(self.scoring.adds)
        for batch in batches:
            score = score or loaded(self.scoring, self.folder)
            columns = dict(zip(batch.schema.names, batch.columns, strict=True))
            kept = {name: column for name, column in columns.items() if name not in adds}
            added = dict(zip(adds, score(batch), strict=True))
            yield pa.RecordBatch.from_pydict(kept | {n: added[n].cast(kind) for n, kind in adds.items()})


@dataclass(frozen=True, slots=True)
class GoldenCheck:
    """Says how the release's golden rows differ when this process scores them; an empty text where they do not."""

    scoring: Scoring
    folder: str

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            found = self.scoring.golden(Path(self.folder))
            yield pa.RecordBatch.from_pydict({"differs": [found] * batch.num_rows})
