"""What a batch job is: a frozen declaration beside its model, `JOB` in `models/<name>/batch_<job>.py`.

The runner (`batch_scorer.runner`) turns a job, a cut-off, a warehouse and a release into one run:

    population(inputs)                      one row for each key that is to get a prediction       frame with `key`
    rows(inputs, population)                what the model scores; by default the population       frame
    features(inputs, rows)                  adds what the model reads; by default nothing          frame
    scoring                                 the release's module in the executors, Arrow batches   adds its columns
    combine(inputs, population, scored)     `key` and the outputs; by default a selection          frame with `key`
    checks, then publication

Functions of a job are named functions of an importable module: executors import them. They only build Spark frames;
nothing in them collects. The cut-off is exclusive: a run sees events before it and labels known before it.
This module needs neither Spark nor torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import pyarrow as pa
from feature_store.source_files import SourceFiles

from batch_scorer.errors import JobError

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

    from batch_scorer.inputs import Inputs

KEY = "key"
Kind = Literal["float32", "float64", "int32", "int64", "bool", "string", "vector", "ranking"]
_ARROW: dict[str, pa.DataType] = {
    "float32": pa.float32(),
    "float64": pa.float64(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "bool": pa.bool_(),
    "string": pa.string(),
    "ranking": pa.list_(pa.struct([pa.field("item", pa.string()), pa.field("score", pa.float32())])),
}
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
_JOB_NAME = re.compile(r"[a-z][a-z0-9-]{0,39}")


@dataclass(frozen=True, slots=True)
class Need:
    """A source that the job reads: its files, the columns it takes from them, and how far back from the cut-off.

    `columns` empty: all that `files` declares. `back` None: everything there is before the cut-off. `gaps`: days
    without a file are normal there; otherwise every day of the range needs one.
    """

    files: SourceFiles
    columns: tuple[str, ...] = ()
    back: timedelta | None = None
    gaps: bool = False

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.columns) - set(self.files.schema.names)):
            raise JobError(f"need {self.files.folder}: no column {unknown}; its files have {self.files.schema.names}")

    @property
    def source(self) -> str:
        """Its folder in the warehouse, as `Inputs.events` takes it."""
        return self.files.folder

    @property
    def schema(self) -> pa.Schema:
        """Of the columns that it takes."""
        return pa.schema([self.files.schema.field(name) for name in self.columns or self.files.schema.names])

    def from_us(self, cutoff_us: int) -> int | None:
        """The first time that counts; None: all."""
        return None if self.back is None else cutoff_us - self.back // timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Output:
    """A value that a key gets. In Redis and Parquet it is an Arrow column of `arrow_type`.

    `vector`: float32 of length `size` (an embedding). `ranking`: items in order, best first, each with its score
    (Spark: array<struct<item: string, score: float>>).
    """

    name: str
    kind: Kind = "float32"
    size: int = 0
    description: str = ""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or self.name == KEY:
            raise JobError(f"output {self.name!r}: a name is lower case, like `score`, and not `{KEY}`")
        if self.kind != "vector" and self.kind not in _ARROW:
            raise JobError(f"output {self.name}: kind is {self.kind!r}, known are {', '.join(_ARROW)}, vector")
        if (self.kind == "vector") != (self.size > 0):
            raise JobError(f"output {self.name}: kind 'vector' needs a size above 0, other kinds take none")

    @property
    def arrow_type(self) -> pa.DataType:
        return pa.list_(pa.float32(), self.size) if self.kind == "vector" else _ARROW[self.kind]


@dataclass(frozen=True, slots=True)
class Checks:
    """What must hold before a run is published; a run that fails one is kept and not published.

    coverage: rows of the run over keys of the population, at least this (and never more than 1).
    max_null_share: of any output, at most this share of nulls (and of empty rankings).
    max_same_share: of any numeric output, at most this share of rows in one narrow bin (0.05% wide): a constant.
    drift: outputs whose distribution is compared to the last published run's; empty: all numeric ones.
    max_psi: population stability index against that run, beyond what chance alone gives at these sizes.
    golden: the release's golden rows, scored in an executor, must be equal to the bit.
    """

    coverage: float = 1.0
    max_null_share: float = 0.0
    max_same_share: float = 0.99
    drift: tuple[str, ...] = ()
    max_psi: float = 0.25
    golden: bool = True


class OpenRelease(Protocol):
    """A verified release. `model_release.Release` is one."""

    @property
    def id(self) -> str: ...
    @property
    def path(self) -> Path: ...


#: Scores one batch: gets the rows' columns, gives the added columns, aligned with the rows.
Score = Callable[[pa.RecordBatch], Sequence[pa.Array]]


class Scoring(Protocol):
    """How a release scores rows. Instances are small and pickled to the executors; see `ModuleScoring`."""

    @property
    def adds(self) -> Mapping[str, pa.DataType]:
        """Columns that scoring adds to the rows."""

    def open(self, folder: Path) -> OpenRelease:
        """Verifies a release's folder, in the driver. Raises model_release.ReleaseError."""

    def load(self, folder: Path) -> Score:
        """The release, ready to score; called once in each executor process."""

    def golden(self, folder: Path) -> str:
        """Scores the release's golden rows, in an executor; what differs, in one sentence, or an empty text."""


def whole_population(inputs: Inputs, population: DataFrame) -> DataFrame:
    """Every key is one row that the model scores."""
    return population


def as_they_are(inputs: Inputs, rows: DataFrame) -> DataFrame:
    """The rows carry what the model reads."""
    return rows


def plan_features(inputs: Inputs, rows: DataFrame) -> DataFrame:
    """Adds the features of the release's plan as of each row's time, by `feature_store.spark`."""
    from feature_store.spark import compute_features

    return compute_features(inputs.spark, inputs.release.plan, inputs.warehouse, rows)  # type: ignore[attr-defined]


def scored_rows(inputs: Inputs, population: DataFrame, scored: DataFrame) -> DataFrame:
    """Every scored row is a key's prediction as it stands."""
    return scored


@dataclass(frozen=True)
class BatchJob:
    """One nightly job.

    name: lower case with dashes, e.g. `card-risk`; part of run ids and keys.
    model: whose releases it scores with: the newest `<model>-<hash>` in the folder of releases, or the one named.
    needs: sources, checked (schema, missing days) before Spark starts.
    keep_population: evaluate it once and keep it on disk; False where evaluating it again is cheaper than keeping it.
    outputs: what each key gets. max_age: readers flag the run as stale when its cut-off is older than this.
    """

    name: str
    model: str
    needs: tuple[Need, ...]
    population: Callable[[Inputs], DataFrame]
    scoring: Scoring
    outputs: tuple[Output, ...]
    rows: Callable[[Inputs, DataFrame], DataFrame] = whole_population
    features: Callable[[Inputs, DataFrame], DataFrame] = as_they_are
    combine: Callable[[Inputs, DataFrame, DataFrame], DataFrame] = scored_rows
    checks: Checks = field(default_factory=Checks)
    keep_population: bool = True
    max_age: timedelta = timedelta(hours=36)
    description: str = ""

    def __post_init__(self) -> None:
        if not _JOB_NAME.fullmatch(self.name):
            raise JobError(f"job {self.name!r}: a name is lower case with dashes, at most 40 characters")
        names = [output.name for output in self.outputs]
        if not names or len(set(names)) != len(names):
            raise JobError(f"job {self.name}: outputs must be one or more with different names, found {names}")
        if unknown := sorted(set(self.checks.drift) - set(names)):
            raise JobError(f"job {self.name}: checks.drift names {unknown}, the outputs are {names}")
        if not 0.0 <= self.checks.coverage <= 1.0:
            raise JobError(f"job {self.name}: checks.coverage is {self.checks.coverage}, must be 0 to 1")
        if not self.needs:
            raise JobError(f"job {self.name}: needs must name one source or more")

    @property
    def schema(self) -> pa.Schema:
        """Of the run's rows: the key and the outputs."""
        return pa.schema([pa.field(KEY, pa.string()), *(pa.field(o.name, o.arrow_type) for o in self.outputs)])
