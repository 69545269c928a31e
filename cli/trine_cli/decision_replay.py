"""Replay of recorded decisions from an archive and a folder of releases: for the command and the demo."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
from batch_scorer.archive import Archive
from batch_scorer.outcome import Replayed, Report
from batch_scorer.replay import Replay, ServedRelease
from batch_scorer.run_risks import RunRisks
from batch_scorer.vectors import Base
from model_release import list_releases, open_release, scoring_module

from trine_cli.errors import BadInput
from trine_cli.parquet_file import write_parquet


def replay_decisions(
    archive: Archive,
    releases: Path,
    base: tuple[Path, int] | None = None,
    from_us: int | None = None,
    to_us: int | None = None,
    runs: RunRisks | None = None,
) -> tuple[Report, list[Replayed]]:
    """Every decision on events from `from_us` to before `to_us`, replayed; `base`: dataset and cut of a rebuild;
    `runs`: of batch jobs, without which decisions that one took part in are different.

    Raises BadInput, model_release.ReleaseError, feature_store.dataset.DatasetError, and what the archive does.
    """
    if not releases.is_dir():
        raise BadInput(f"--releases {releases}: is not a folder")
    known = {path.name: path for path in list_releases(releases)}

    def served(release: str) -> ServedRelease | None:
        if release not in known:
            return None
        return ServedRelease(open_release(known[release]), scoring_module.load(known[release]))

    replay = Replay(archive, served, None if base is None else Base(*base), runs)
    found = list(replay.run(from_us, to_us))
    return replay.report, found


def write_outcomes(found: Iterable[Replayed], out: Path) -> None:
    """A Parquet file with a row a decision: its id, `equal`, and in words what differs."""
    rows = list(found)
    table = pa.table(
        {
            "decision_id": [r.decision_id for r in rows],
            "equal": [r.equal for r in rows],
            "differences": pa.array([[str(d) for d in r.differences] for r in rows], pa.list_(pa.string())),
        }
    )
    write_parquet(table, out)
