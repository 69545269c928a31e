"""Writing a release: into a hidden folder beside its place, then one rename; an existing release is never touched."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from feature_store.definitions import FeaturePlan
from numpy.typing import NDArray
from torch import nn

from model_release import scoring_module
from model_release.archive import write_archive
from model_release.errors import ReleaseError
from model_release.manifest import (
    CARD_FILE,
    FORMAT,
    GOLDEN_INPUTS_FILE,
    GOLDEN_SCORES_FILE,
    MANIFEST_FILE,
    MODULE_FILE,
    Manifest,
    ManifestBase,
    Policy,
    Thresholds,
    content_hash,
    release_id,
)
from model_release.release import Release, open_release

M = TypeVar("M", bound=ManifestBase)


@dataclass(frozen=True, slots=True)
class Draft:
    """What training hands over. `golden_inputs` float32 [n >= 256, F]; their scores are computed by the module."""

    plan: FeaturePlan
    network: nn.Module
    golden_inputs: NDArray[np.float32]
    model_card: str
    thresholds: Thresholds
    threshold_basis: str
    calibration: dict[str, Any]
    policy: Policy
    metrics: dict[str, Any]
    training: dict[str, Any]


def write_release(releases: Path | str, draft: Draft, handler: Path) -> Release:
    """Writes `draft` as a folder in `releases` and opens it, verified.

    Equal content has the same id: the folder that is already there is verified and returned.

    Raises:
        ReleaseError: the draft does not fit together, or the folder of this id is there and damaged.
    """
    return open_release(place_release(releases, lambda folder: _fill(folder, draft, handler)))


def place_release(releases: Path | str, fill: Callable[[Path], str]) -> Path:
    """The release's folder in `releases`, once `fill` has written an empty one whole and given its name.

    A folder of that name is left as it is: equal content has the same name.
    """
    root = Path(releases)
    root.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=".writing-", dir=root))
    try:
        target = root / fill(staging)
        if not target.exists():
            _sync(staging)
            staging.chmod(0o755)
            try:
                staging.rename(target)
            except OSError:
                # Somebody else finished the same release first.
                if not target.exists():
                    raise
        return target
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _fill(folder: Path, draft: Draft, handler: Path) -> str:
    features = draft.plan.features
    rows = np.ascontiguousarray(draft.golden_inputs, dtype="<f4")
    if rows.ndim != 2 or rows.shape[1] != len(features):
        raise ReleaseError(f"golden_inputs: need [n, {len(features)}], found {list(rows.shape)}")
    scoring_module.export(draft.network, len(features), folder / MODULE_FILE)
    scores = scoring_module.load(folder)(rows)
    (folder / GOLDEN_INPUTS_FILE).write_bytes(rows.tobytes())
    (folder / GOLDEN_SCORES_FILE).write_bytes(scores.astype("<f4").tobytes())
    (folder / CARD_FILE).write_text(draft.model_card, encoding="utf-8")
    body: dict[str, Any] = {
        "format": FORMAT,
        "model": draft.plan.model,
        "plan": draft.plan.to_json(),
        "features": list(features),
        "thresholds": draft.thresholds.model_dump(mode="json"),
        "threshold_basis": draft.threshold_basis,
        "calibration": draft.calibration,
        "policy": draft.policy.model_dump(mode="json"),
        "metrics": draft.metrics,
        "training": draft.training,
    }
    return sealed(folder, body, Manifest, lambda name: write_archive(folder, name, handler)).release


def sealed(folder: Path, body: dict[str, Any], schema: type[M], archived: Callable[[str], Path] | None = None) -> M:
    """Writes the manifest: `body` with the hashes of the folder's files, and the name that follows from them.

    `archived`: writes the archive, given that name; it is outside the content's hash.
    """
    files = {path.name: _sha256(path) for path in sorted(folder.iterdir())}
    # As it will be read back: tuples are lists from here on.
    body = json.loads(json.dumps({**body, "files": files}))
    digest = content_hash(body)
    name = release_id(body["model"], digest)
    if archived is not None:
        archive = archived(name)
        files[archive.name] = _sha256(archive)
    created_at = datetime.now(UTC).isoformat(timespec="seconds")
    manifest = schema.model_validate(
        {**body, "release": name, "content_hash": digest, "created_at": created_at, "files": files}
    )
    (folder / MANIFEST_FILE).write_bytes(manifest.to_json())
    return manifest


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _sync(folder: Path) -> None:
    """Makes the files durable before the rename makes them visible."""
    for path in (*folder.iterdir(), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
