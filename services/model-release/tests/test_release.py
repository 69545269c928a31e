"""A release is opened whole or not at all."""

from __future__ import annotations

import json
import multiprocessing
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from feature_store.definitions import Count, Entity, FeaturePlan, FeatureView, RequestFeature, Source
from model_release import (
    Release,
    ReleaseError,
    list_releases,
    list_request_releases,
    open_release,
    scoring_module,
)
from model_release.manifest import content_hash, release_id
from model_release.testing import write_toy_release

VISITS = Source("visits", "test.Visit", "test.visits", key="who", id="visit", time="at", fields=("cost",))
PLAN = FeaturePlan(
    model="toy",
    source=VISITS,
    request_features=(RequestFeature("cost", "field", "cost"), RequestFeature("night", "night")),
    views=(FeatureView("guest", Entity("guest", "who"), VISITS, (Count(),), (timedelta(days=1), timedelta(days=7))),),
)
OTHER_PLAN = replace(PLAN, views=(replace(PLAN.views[0], windows=(timedelta(days=2), timedelta(days=7))),))


@pytest.fixture(scope="module")
def handler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("handler") / "handler.py"
    file.write_text("# stands for the handler\n")
    return file


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, handler: Path) -> Release:
    return write_toy_release(tmp_path_factory.mktemp("releases"), PLAN, PLAN.features, handler=handler)


@pytest.fixture
def copy(written: Release, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written.path, tmp_path / written.id))


def test_opens_what_was_written(written: Release) -> None:
    release = open_release(written.path)
    assert release.id == written.path.name == written.id
    assert release.plan == PLAN
    assert release.features == ("cost", "night", "guest_count_1d", "guest_count_7d")
    assert release.archive_path.is_file()
    scores = scoring_module.load(release.path)(release.golden_inputs)
    assert (scores.view(np.int32) == release.golden_scores.view(np.int32)).all()
    assert release.golden_scores.std() > 0.1


FILES = ("manifest.json", "module.pt2", "model_card.md", "golden_inputs.f32", "golden_scores.f32", "{release}.mar")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_one_flipped_bit_in_any_file_is_refused(copy: Path, name: str, place: float) -> None:
    file = copy / name.format(release=copy.name)
    raw = bytearray(file.read_bytes())
    raw[min(int(place * len(raw)), len(raw) - 2)] ^= 1
    file.write_bytes(raw)
    with pytest.raises(ReleaseError, match=file.name.replace(".", r"\.")):
        open_release(copy)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(copy: Path, name: str) -> None:
    file = copy / name.format(release=copy.name)
    file.unlink()
    with pytest.raises(ReleaseError, match=f"{file.name}: not readable"):
        open_release(copy)


def test_an_unexpected_file_and_a_renamed_folder_are_refused(copy: Path) -> None:
    (copy / "extra.txt").write_text("x")
    with pytest.raises(ReleaseError, match=r"unexpected \['extra.txt'\]"):
        open_release(copy)
    (copy / "extra.txt").unlink()
    with pytest.raises(ReleaseError, match="must be named as its release"):
        open_release(copy.rename(copy.with_name("toy-000000000000")))


def _rewrite(folder: Path, change: Callable[[dict[str, object]], object]) -> Path:
    """Changes the manifest and makes name and hash consistent again: a forgery, not an accident."""
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    digest = content_hash(manifest)
    name = release_id(str(manifest["model"]), digest)
    archive = next(folder.glob("*.mar"))
    manifest["files"][f"{name}.mar"] = manifest["files"].pop(archive.name)
    archive.rename(folder / f"{name}.mar")
    manifest.update(release=name, content_hash=digest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder.rename(folder.with_name(name))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(plan=OTHER_PLAN.to_json()), "are not the plan's"),
        (lambda m: m["features"].reverse(), "are not the plan's"),
        (lambda m: m["plan"].pop("views"), "plan: .*'views' is missing"),
        (lambda m: m.update(model="other"), "plan is for model 'toy', not 'other'"),
        (lambda m: m["thresholds"].update(review=0.9), "need 0 < review <= deny"),
        (lambda m: m["policy"]["rules"][0].update(feature="colour"), "'colour' is none of"),
        (lambda m: m["policy"].update(unrecorded="guess"), "unrecorded"),
        (lambda m: m.update(surprise=1), "surprise"),
        (lambda m: m.update(format=2), "format"),
    ],
)
def test_a_consistent_but_wrong_manifest_is_refused(
    copy: Path, change: Callable[[dict[str, object]], object], message: str
) -> None:
    with pytest.raises(ReleaseError, match=message):
        open_release(_rewrite(copy, change))


def test_a_consistent_rewrite_that_is_right_opens(copy: Path) -> None:
    assert open_release(_rewrite(copy, lambda m: m.update(threshold_basis="other"))).id != copy.name


def test_same_content_same_id_and_nothing_is_overwritten(written: Release, handler: Path, tmp_path: Path) -> None:
    elsewhere = write_toy_release(tmp_path, PLAN, handler=handler)
    assert elsewhere.id == written.id
    before = (elsewhere.path / "manifest.json").stat()
    again = write_toy_release(tmp_path, PLAN, handler=handler)
    assert again.id == elsewhere.id
    assert (again.path / "manifest.json").stat() == before
    assert write_toy_release(tmp_path, PLAN, seed=1, handler=handler).id != written.id
    assert len(list_releases(tmp_path)) == len(list(tmp_path.iterdir())) == 2


def test_concurrent_writers_of_one_release_agree(handler: Path, tmp_path: Path) -> None:
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        written = [pool.submit(write_toy_release, tmp_path, PLAN, handler=handler) for _ in range(2)]
        ids = {found.result().id for found in written}
    assert len(ids) == 1
    assert [path.name for path in tmp_path.iterdir()] == list(ids)


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_toy_release(tmp_path, PLAN, handler=tmp_path / "none.py")
    assert list(tmp_path.iterdir()) == []


def test_unfinished_folders_are_not_listed(written: Release, tmp_path: Path) -> None:
    shutil.copytree(written.path, tmp_path / f".writing-{written.id}")
    (tmp_path / "toy-0123456789ab").mkdir()
    assert list_releases(tmp_path) == []
    assert list_releases(tmp_path / "nowhere") == []


def test_a_plan_that_no_request_carries_is_for_batch_jobs_alone(tmp_path: Path) -> None:
    served = write_toy_release(tmp_path, PLAN)
    batch = write_toy_release(tmp_path, replace(PLAN, model="nightly", request_features=()))
    assert list_releases(tmp_path) == sorted([served.path, batch.path])
    assert list_request_releases(tmp_path) == [served.path]
