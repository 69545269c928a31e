"""A run in the warehouse: its rows as Parquet parts, and a manifest that is written when all of them are there.

    <warehouse>/runs/<job>/<run>/begun.json                who began it and when: the first file
    <warehouse>/runs/<job>/<run>/part-00000.parquet ...    key, outputs, and the number of the row's block, sorted by it
    <warehouse>/runs/<job>/<run>/manifest.json             the last file of the run's rows
    <warehouse>/runs/<job>/<run>/report.html, metrics.prom what people and Prometheus read

A folder without a manifest is a run that did not get so far. All rows of a block are in one part.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Literal

import pyarrow as pa
from feature_store.warehouse_store import WarehouseStore
from pydantic import BaseModel, ConfigDict, ValidationError

from batch_scorer.checks import Check
from batch_scorer.distributions import Distribution
from batch_scorer.errors import StorageError
from batch_scorer.runs import job_of

RUNS = "runs"
BLOCK = "_block"
BEGUN, MANIFEST, REPORT, METRICS = "begun.json", "manifest.json", "report.html", "metrics.prom"
Outcome = Literal["ready", "published", "refused"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True)


class Part(_Record):
    """One Parquet file of a run."""

    file: str
    rows: int
    bytes: int


class OutputSummary(_Record):
    """How one output is distributed; `bins`: coarse bins of `distributions`, lowest first."""

    null_share: float
    same_share: float
    mean: float
    least: float | None
    greatest: float | None
    bins: dict[int, int]


class Manifest(_Record):
    """manifest.json. Times are UTC; `seconds` by stage; `forced`: the reason given for publishing nevertheless.

    `generation`: of the model's pointer that named the release; 0 where the run named it itself, or there was none.
    outcome: `ready` when its rows are whole, then `published`, or `refused` where a check failed.
    """

    format: Literal[1] = 1
    run: str
    job: str
    model: str
    release: str
    generation: int = 0
    cutoff: datetime
    cutoff_us: int
    outcome: Outcome
    who: str
    forced: str = ""
    began: datetime
    ended: datetime | None = None
    previous: str = ""
    population: int
    rows: int
    blocks: int
    redis_bytes: int = 0
    paused_s: float = 0.0
    parts: list[Part]
    checks: list[Check]
    outputs: dict[str, OutputSummary]
    seconds: dict[str, float]
    stage_rows: dict[str, int] = {}
    files_read: dict[str, int] = {}
    versions: dict[str, str] = {}

    @property
    def failed(self) -> list[Check]:
        return [check for check in self.checks if not check.passed]


class Folder:
    """One run's folder in a warehouse. Every method raises StorageError where the warehouse refuses."""

    def __init__(self, store: WarehouseStore, run: str) -> None:
        self.store, self.run = store, run
        self.path = f"{RUNS}/{job_of(run)}/{run}"

    @property
    def shown(self) -> str:
        return self.store.shown(self.path)

    def file(self, name: str) -> str:
        """A file's path below the warehouse."""
        return f"{self.path}/{name}"

    def begin(self, who: str, cutoff_us: int) -> None:
        """The first file; tells early whether the warehouse can be written."""
        self.write(BEGUN, json.dumps({"run": self.run, "who": who, "cutoff_us": cutoff_us}).encode())

    def write(self, name: str, content: bytes) -> None:
        """A small file, whole or not at all."""
        try:
            self.store.put(self.file(name), pa.py_buffer(content))
        except OSError as error:
            raise StorageError(f"{self.store.shown(self.file(name))}: cannot be written: {error}") from error

    def write_manifest(self, manifest: Manifest) -> None:
        self.write(MANIFEST, manifest.model_dump_json(indent=1).encode() + b"\n")

    def manifest(self) -> Manifest | None:
        """None where there is none, or one that this version cannot read."""
        try:
            with self.store.open(self.file(MANIFEST)) as file:
                return Manifest.model_validate_json(bytes(file.readall()))
        except FileNotFoundError:
            return None
        except ValidationError:
            return None
        except OSError as error:
            raise StorageError(f"{self.store.shown(self.file(MANIFEST))}: cannot be read: {error}") from error

    def delete(self) -> None:
        """All of it, the manifest first: what is left by an interruption is no whole run."""
        try:
            self.store.delete(self.file(MANIFEST))
            self.store.delete_folder(self.path)
        except OSError as error:
            raise StorageError(f"{self.shown}: cannot be deleted: {error}") from error


def folders(store: WarehouseStore, job: str = "") -> Iterator[Folder]:
    """Every run's folder, of one job or of all, in order of their names.

    Also one without a file: a task that goes on after its run has failed and was deleted makes it, and may fail too.
    """
    below = f"{RUNS}/{job}" if job else RUNS
    runs = {"/".join(file.path.split("/")[:3]) for file in store.files(below) if file.path.count("/") >= 3}
    runs.update(path for path in store.folders(below) if path.count("/") == 2)
    for path in sorted(runs):
        yield Folder(store, path.rsplit("/", 1)[-1])


def summary(found: Distribution) -> OutputSummary:
    """What the manifest keeps of a distribution."""
    return OutputSummary(
        null_share=found.null_share,
        same_share=found.same_share,
        mean=found.mean,
        least=found.least if found.values else None,
        greatest=found.greatest if found.values else None,
        bins=found.coarse,
    )


def utc(time_us: int) -> datetime:
    return datetime.fromtimestamp(time_us / 1e6, UTC)
