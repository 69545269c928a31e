"""Opening a release: everything is verified before anything is used."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from feature_store.definitions import DefinitionError, FeaturePlan
from numpy.typing import NDArray
from pydantic import ValidationError

from model_release.errors import ReleaseError
from model_release.manifest import (
    CARD_FILE,
    GOLDEN_INPUTS_FILE,
    GOLDEN_SCORES_FILE,
    MANIFEST_FILE,
    MIN_GOLDEN_ROWS,
    MODULE_FILE,
    Manifest,
    check_identity,
    is_release_id,
)


@dataclass(frozen=True, slots=True, eq=False)
class Release:
    """A verified release folder. Golden rows: inputs float32 [n, F], scores float32 [n], n >= 256."""

    path: Path
    manifest: Manifest
    plan: FeaturePlan
    golden_inputs: NDArray[np.float32]
    golden_scores: NDArray[np.float32]

    @property
    def id(self) -> str:
        return self.manifest.release

    @property
    def features(self) -> tuple[str, ...]:
        """Names in vector order."""
        return self.manifest.features

    @property
    def module_path(self) -> Path:
        return self.path / MODULE_FILE

    @property
    def archive_path(self) -> Path:
        return self.path / self.manifest.archive_file


def open_release(path: Path | str) -> Release:
    """Verifies and opens a release folder; reads every file once.

    Raises:
        ReleaseError: names the file and the reason: missing, unexpected, hash or size differs, manifest invalid,
            the vector's order is not the plan's, golden scores not finite.
    """
    folder = Path(path)
    manifest = _read_manifest(folder)
    plan = _read_plan(folder, manifest)
    content = {name: _verified(folder, name, digest) for name, digest in sorted(manifest.files.items())}
    needed = {MODULE_FILE, CARD_FILE, GOLDEN_INPUTS_FILE, GOLDEN_SCORES_FILE, manifest.archive_file}
    _same_names(folder, "files", set(content), needed)
    _same_names(folder, "folder", {entry.name for entry in folder.iterdir()}, needed | {MANIFEST_FILE})
    inputs, scores = _golden(folder, content, len(manifest.features))
    return Release(folder, manifest, plan, inputs, scores)


def list_releases(folder: Path | str) -> list[Path]:
    """Release folders in `folder`, by name; unfinished ones (still being written) are not listed. Opens nothing."""
    root = Path(folder)
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if is_release_id(path.name) and (path / MANIFEST_FILE).is_file())


def _read_manifest(folder: Path) -> Manifest:
    try:
        raw = (folder / MANIFEST_FILE).read_bytes()
    except OSError as error:
        raise ReleaseError(f"{folder / MANIFEST_FILE}: not readable ({error.strerror}); is this a release?") from error
    try:
        manifest = Manifest.model_validate_json(raw)
    except ValidationError as error:
        raise ReleaseError(f"{folder / MANIFEST_FILE}: {error}") from error
    check_identity(manifest)
    if folder.resolve().name != manifest.release:
        raise ReleaseError(f"{folder}: the folder must be named as its release, {manifest.release!r}")
    return manifest


def _read_plan(folder: Path, manifest: Manifest) -> FeaturePlan:
    try:
        plan = FeaturePlan.from_json(manifest.plan)
    except DefinitionError as error:
        raise ReleaseError(f"{folder / MANIFEST_FILE}: plan: {error}") from error
    if plan.model != manifest.model:
        raise ReleaseError(f"{folder / MANIFEST_FILE}: plan is for model {plan.model!r}, not {manifest.model!r}")
    if plan.features != manifest.features:
        raise ReleaseError(f"{folder / MANIFEST_FILE}: features {manifest.features} are not the plan's {plan.features}")
    return plan


def _verified(folder: Path, name: str, digest: str) -> bytes:
    if Path(name).name != name:
        raise ReleaseError(f"{folder / MANIFEST_FILE}: files: {name!r} is not a plain file name")
    try:
        raw = (folder / name).read_bytes()
    except OSError as error:
        raise ReleaseError(f"{folder / name}: not readable ({error.strerror})") from error
    found = hashlib.sha256(raw).hexdigest()
    if found != digest:
        raise ReleaseError(f"{folder / name}: sha256 is {found}, the manifest says {digest}")
    return raw


def _same_names(folder: Path, what: str, found: set[str], needed: set[str]) -> None:
    if found != needed:
        missing, extra = sorted(needed - found), sorted(found - needed)
        raise ReleaseError(f"{folder}: {what}: missing {missing}, unexpected {extra}")


def _golden(folder: Path, content: dict[str, bytes], width: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    raw_inputs, raw_scores = content[GOLDEN_INPUTS_FILE], content[GOLDEN_SCORES_FILE]
    rows = len(raw_scores) // 4
    if len(raw_scores) % 4 or rows < MIN_GOLDEN_ROWS:
        raise ReleaseError(
            f"{folder / GOLDEN_SCORES_FILE}: {len(raw_scores)} bytes, need float32 for >= {MIN_GOLDEN_ROWS} rows"
        )
    if len(raw_inputs) != rows * width * 4:
        raise ReleaseError(
            f"{folder / GOLDEN_INPUTS_FILE}: {len(raw_inputs)} bytes, need {rows} rows of {width} float32"
        )
    inputs = np.frombuffer(raw_inputs, dtype="<f4").reshape(rows, width)
    scores = np.frombuffer(raw_scores, dtype="<f4")
    if not (np.isfinite(scores).all() and (scores >= 0).all() and (scores <= 1).all()):
        raise ReleaseError(f"{folder / GOLDEN_SCORES_FILE}: scores must be probabilities, 0..1")
    return inputs, scores
