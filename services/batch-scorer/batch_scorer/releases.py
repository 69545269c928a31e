"""Which release a run scores with: the one that is named, else the pointer's current one, else the newest."""

from __future__ import annotations

import json
from pathlib import Path

from model_release.errors import ReleaseError
from model_release.manifest import MANIFEST_FILE
from model_release.release import list_releases
from model_release.rollout import Pointer

from batch_scorer.errors import InputError
from batch_scorer.job import BatchJob, OpenRelease


def choose_release(job: BatchJob, releases: Path, named: str = "", pointer: Pointer | None = None) -> OpenRelease:
    """The release, verified by the job's scoring. Raises InputError."""
    name = named or (pointer.current if pointer is not None else "")
    folders = [releases / name] if name else _of_model(releases, job.model)
    if not folders:
        raise InputError(f"{releases}: has no release of model {job.model!r}; `trine train` makes one")
    try:
        return job.scoring.open(max(folders, key=_created_at) if not name else folders[0])
    except ReleaseError as error:
        if named or pointer is None:
            raise InputError(str(error)) from error
        raise InputError(
            f"{pointer.current} is the current release of {job.model} (generation {pointer.generation}) and cannot be"
            f" opened here: {error}"
        ) from error


def _of_model(releases: Path, model: str) -> list[Path]:
    return [path for path in list_releases(releases) if path.name.rpartition("-")[0] == model]


def _created_at(folder: Path) -> str:
    try:
        return str(json.loads((folder / MANIFEST_FILE).read_bytes())["created_at"])
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder / MANIFEST_FILE}: no manifest of a release: {error!r}") from error
