"""Opening a release: everything is verified before anything is used."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar, overload

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
    Kind,
    Manifest,
    ManifestBase,
    RecommenderManifest,
    check_identity,
    is_release_id,
)
from model_release.recommender import RECOMMENDER_FILES, RecommenderRelease, read_recommender

M = TypeVar("M", bound=ManifestBase)


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


@overload
def open_release(path: Path | str, kind: Literal["tabular"] = "tabular") -> Release: ...
@overload
def open_release(path: Path | str, kind: Literal["recommender"]) -> RecommenderRelease: ...
@overload
def open_release(path: Path | str, kind: None) -> Release | RecommenderRelease: ...
def open_release(path: Path | str, kind: Kind | None = "tabular") -> Release | RecommenderRelease:
    """Verifies and opens a release folder of this kind (None: of any); reads every file once.

    Raises:
        ReleaseError: names the file and the reason: missing, unexpected, hash or size differs, manifest invalid, of
            another kind, the vector's order is not the plan's, golden scores not finite.
    """
    folder = Path(path)
    raw = _read(folder)
    found = _kind(raw)
    if kind is not None and kind != found:
        raise ReleaseError(f"{folder / MANIFEST_FILE}: this is a {found} release, a {kind} one is needed")
    return _open_tabular(folder, raw) if found == "tabular" else _open_recommender(folder, raw)


def list_releases(folder: Path | str, kind: Kind | None = None) -> list[Path]:
    """Release folders in `folder`, by name; unfinished ones (still being written) are not listed. Verifies nothing.

    `kind`: only those of this kind. An unreadable manifest counts as tabular: opening it tells what is wrong.
    """
    root = Path(folder)
    if not root.is_dir():
        return []
    found = sorted(path for path in root.iterdir() if is_release_id(path.name) and (path / MANIFEST_FILE).is_file())
    return found if kind is None else [path for path in found if _kind_of(path) == kind]


def list_request_releases(folder: Path | str) -> list[Path]:
    """Tabular releases whose plan reads something of a request: what gateways and model servers serve. Others are for
    batch jobs alone. An unreadable manifest counts as one: opening it tells what is wrong."""
    return [path for path in list_releases(folder, "tabular") if _reads_requests(path)]


def files_of(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Name, size and time of every file, to see that a folder changed; nothing where it cannot be read."""
    try:
        stats = [(entry.name, entry.stat()) for entry in folder.iterdir()]
    except OSError:
        return ()
    return tuple(sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats))


def _reads_requests(folder: Path) -> bool:
    try:
        return bool(json.loads(_read(folder))["plan"]["request_features"])
    except (ReleaseError, ValueError, KeyError, TypeError):
        return True


def _open_tabular(folder: Path, raw: bytes) -> Release:
    manifest = _checked(folder, raw, Manifest)
    plan = _read_plan(folder, manifest)
    content = _content(
        folder, manifest, {MODULE_FILE, CARD_FILE, GOLDEN_INPUTS_FILE, GOLDEN_SCORES_FILE, manifest.archive_file}
    )
    inputs, scores = _golden(folder, content, len(manifest.features))
    return Release(folder, manifest, plan, inputs, scores)


def _open_recommender(folder: Path, raw: bytes) -> RecommenderRelease:
    manifest = _checked(folder, raw, RecommenderManifest)
    return read_recommender(folder, manifest, _content(folder, manifest, set(RECOMMENDER_FILES)))


def _read(folder: Path) -> bytes:
    try:
        return (folder / MANIFEST_FILE).read_bytes()
    except OSError as error:
        raise ReleaseError(f"{folder / MANIFEST_FILE}: not readable ({error.strerror}); is this a release?") from error


def _kind_of(folder: Path) -> str:
    try:
        return _kind(_read(folder))
    except ReleaseError:
        return "tabular"


def _kind(raw: bytes) -> str:
    try:
        manifest = json.loads(raw)
    except ValueError:
        return "tabular"
    found = manifest.get("kind") if isinstance(manifest, dict) else None
    return "recommender" if found == "recommender" else "tabular"


def _checked(folder: Path, raw: bytes, schema: type[M]) -> M:
    try:
        manifest = schema.model_validate_json(raw)
    except ValidationError as error:
        raise ReleaseError(f"{folder / MANIFEST_FILE}: {error}") from error
    check_identity(manifest)
    if folder.resolve().name != manifest.release:
        raise ReleaseError(f"{folder}: the folder must be named as its release, {manifest.release!r}")
    return manifest


def _content(folder: Path, manifest: ManifestBase, needed: set[str]) -> dict[str, bytes]:
    """The files by name, verified: those that are needed, and no others."""
    content = {name: _verified(folder, name, digest) for name, digest in sorted(manifest.files.items())}
    _same_names(folder, "files", set(content), needed)
    _same_names(folder, "folder", {entry.name for entry in folder.iterdir()}, needed | {MANIFEST_FILE})
    return content


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
