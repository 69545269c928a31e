"""What is known of a run, and the names of everything that belongs to one in Redis.

trine:batch:jobs               set of jobs
trine:batch:<job>:current      the pointer: the published run, all a reader needs to know of it (JSON)
trine:batch:<job>:runs         hash: run -> the same JSON, for every run that has or had blocks
trine:batch:<job>:lease        who works on the job now: "<fence> <run>", expires
trine:batch:<job>:fence        the last lease given: "<fence> <run>", for ever
trine:batch:<run>:<n>          block n of a run (`batch_scorer.blocks`)
trine:batch:<run>:pace         milliseconds that its writers pause between chunks, while it is written
"""

from __future__ import annotations

import json
import secrets
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, Literal

import pyarrow as pa

from batch_scorer.job import KEY, BatchJob, Output

JOBS = "trine:batch:jobs"
State = Literal["writing", "written"]


@dataclass(frozen=True, slots=True)
class Run:
    """A run as Redis knows it. Times in microseconds, UTC; `previous`: the run that it took the pointer from.

    state: `writing` until all rows are counted in Redis, then `written`. Which run is current says the pointer alone.
    """

    run: str
    job: str
    cutoff_us: int
    release: str
    blocks: int
    rows: int
    outputs: tuple[Output, ...]
    max_age_s: int
    state: State = "writing"
    created_us: int = 0
    published_us: int = 0
    superseded_us: int = 0
    previous: str = ""
    forced: str = ""
    who: str = ""

    @property
    def schema(self) -> pa.Schema:
        """Of its blocks."""
        return pa.schema([pa.field(KEY, pa.string()), *(pa.field(o.name, o.arrow_type) for o in self.outputs)])

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> Run:
        """The run that `to_json` described; fields that a newer version added are passed over."""
        found: dict[str, Any] = json.loads(text)  # Any: JSON
        known = {name: value for name, value in found.items() if name in cls.__dataclass_fields__}
        return cls(**known | {"outputs": tuple(Output(**output) for output in found["outputs"])})

    def now(self, **changes: Any) -> Run:
        return replace(self, **changes)


def new_run_id(job: str, cutoff_us: int) -> str:
    """`<job>-<cut-off>-<8 hex>`, another one each time."""
    return f"{job}-{moment_name(cutoff_us)}-{secrets.token_hex(4)}"


def moment_name(time_us: int) -> str:
    """A time in a name: 20180808t000000."""
    return datetime.fromtimestamp(time_us // 1_000_000, UTC).strftime("%Y%m%dt%H%M%S")


def job_of(run: str) -> str:
    """The job that a run id names."""
    return run.rsplit("-", 2)[0]


def first_record(job: BatchJob, run: str, cutoff_us: int, release: str, created_us: int, who: str) -> Run:
    """A run at its beginning, with no rows."""
    return Run(
        run, job.name, cutoff_us, release, 0, 0, job.outputs, int(job.max_age.total_seconds()), "writing", created_us,
        who=who,
    )  # fmt: skip


def current_key(job: str) -> str:
    return f"trine:batch:{job}:current"


def runs_key(job: str) -> str:
    return f"trine:batch:{job}:runs"


def lease_key(job: str) -> str:
    return f"trine:batch:{job}:lease"


def fence_key(job: str) -> str:
    return f"trine:batch:{job}:fence"


def block_key(run: str, block: int) -> str:
    return f"trine:batch:{run}:{block}"


def pace_key(run: str) -> str:
    return f"trine:batch:{run}:pace"
