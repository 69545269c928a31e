"""Recommenders' releases: exact embeddings and ranks, and a folder that is opened whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from feature_store.definitions import Count, Entity, FeaturePlan, FeatureView, RequestFeature, Source
from model_release import RecommenderRelease, ReleaseError, list_releases, open_release
from model_release.manifest import content_hash, release_id
from model_release.recommender_writer import golden_difference
from model_release.retrieval import NOTHING, top_unseen
from model_release.testing import write_toy_recommender, write_toy_release
from model_release.user_tower import load_tower


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> RecommenderRelease:
    return write_toy_recommender(tmp_path_factory.mktemp("releases"))


@pytest.fixture
def copy(written: RecommenderRelease, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written.path, tmp_path / written.id))


def _histories(seed: int, users: int, items: int) -> tuple[Any, Any, Any]:
    random = np.random.default_rng(seed)
    lengths = random.integers(0, items, users)
    seen = np.concatenate([random.choice(items, length, replace=False) for length in lengths]).astype(np.int64)
    return seen, random.integers(1, 2049, len(seen)), np.cumsum(lengths) - lengths


def test_opens_what_was_written(written: RecommenderRelease) -> None:
    release = open_release(written.path, "recommender")
    assert release.id == written.path.name
    assert release.item_ids[:2] == ("i0", "i1")
    assert release.item_embeddings.shape == (release.manifest.items, release.manifest.dimensions) == (40, 8)
    assert golden_difference(release) == ""
    opened = open_release(written.path, None)
    assert isinstance(opened, RecommenderRelease)


def test_kinds_are_told_apart(written: RecommenderRelease, tmp_path: Path) -> None:
    source = Source("visits", "test.Visit", "test.visits", key="who", id="visit", time="at", fields=("cost",))
    view = FeatureView("guest", Entity("guest", "who"), source, (Count(),), (timedelta(days=1),))
    plan = FeaturePlan("toy", source, (RequestFeature("cost", "field", "cost"),), (view,))
    tabular = write_toy_release(tmp_path, plan).path
    recommender = Path(shutil.copytree(written.path, tmp_path / written.id))
    assert list_releases(tmp_path) == sorted([tabular, recommender])
    assert list_releases(tmp_path, "recommender") == [recommender]
    assert list_releases(tmp_path, "tabular") == [tabular]
    with pytest.raises(ReleaseError, match="this is a recommender release, a tabular one is needed"):
        open_release(recommender)
    with pytest.raises(ReleaseError, match="this is a tabular release, a recommender one is needed"):
        open_release(tabular, "recommender")


FILES = (
    "manifest.json", "module.pt2", "model_card.md", "item_embeddings.f32", "item_ids.txt", "item_popularity.i64",
    "golden.json",
)  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit_and_a_missing_file_are_refused(copy: Path, name: str) -> None:
    file = copy / name
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 1
    file.write_bytes(raw)
    with pytest.raises(ReleaseError, match=name.replace(".", r"\.")):
        open_release(copy, None)
    file.unlink()
    with pytest.raises(ReleaseError, match=f"{name}: not readable"):
        open_release(copy, None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(items=39), r"item_embeddings\.f32: 1280 bytes, need 1248"),
        (lambda m: m.update(dimensions=7), r"item_embeddings\.f32: 1280 bytes, need 1120"),
        (lambda m: m["history"].update(age_weights=[0]), "age_weights"),
        (lambda m: m["history"].update(age_weights=[]), "age_weights"),
        (lambda m: m["history"]["typical_values"].update(view=0.0), "typical_values"),
        (lambda m: m.update(surprise=1), "surprise"),
        (lambda m: m.update(kind="ranker"), "kind"),
    ],
)
def test_a_consistent_but_wrong_manifest_is_refused(
    copy: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    manifest = json.loads((copy / "manifest.json").read_text())
    change(manifest)
    digest = content_hash(manifest)
    name = release_id("recommender", digest)
    manifest.update(release=name, content_hash=digest)
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ReleaseError, match=message):
        open_release(copy.rename(copy.with_name(name)), None)


def test_same_content_same_id(written: RecommenderRelease, tmp_path: Path) -> None:
    assert write_toy_recommender(tmp_path).id == written.id
    assert write_toy_recommender(tmp_path, seed=1).id != written.id


def test_embeddings_depend_on_nothing_but_the_history(written: RecommenderRelease) -> None:
    """To the bit: alone or in a batch, and in any order."""
    tower = load_tower(written.module_path)
    seen, weights, starts = _histories(1, 300, 40)
    found = tower(seen, weights, starts)
    assert found.dtype == np.float32
    assert (found[:, -1] == 1.0).all()
    assert found[:, :-1].std() > 0.1
    ends = np.append(starts[1:], len(seen))
    for user in range(0, 300, 7):
        part = slice(starts[user], ends[user])
        alone = tower(seen[part][::-1].copy(), weights[part][::-1].copy(), np.array([0]))
        assert (alone.view(np.int32) == found[user : user + 1].view(np.int32)).all()
    nobody = tower(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int64))
    assert nobody.shape == (0, 8)


def test_ranks_equal_those_of_rational_numbers(written: RecommenderRelease) -> None:
    """The oracle computes with fractions, so scores that are wrong in the last bit would show in the order."""
    users = load_tower(written.module_path)(*_histories(2, 60, 40))
    seen, _, starts = _histories(2, 60, 40)
    # Items that tie with others, and users that tie everything.
    items = written.item_embeddings.copy()
    items[30:] = items[:10]
    users[::7] = 0.0
    ranking = top_unseen(users, items, seen, starts, 12)
    ends = np.append(starts[1:], len(seen))
    for user in range(60):
        exact = [
            sum((Fraction(float(a)) * Fraction(float(b)) for a, b in zip(users[user], item, strict=True)), Fraction(0))
            for item in items
        ]
        unseen = sorted(set(range(40)) - set(seen[starts[user] : ends[user]].tolist()))
        right = sorted(unseen, key=lambda item: (-exact[item], item))[:12]
        assert ranking.items[user, : len(right)].tolist() == right
        assert ranking.scores[user, : len(right)].tolist() == [float(np.float32(float(exact[i]))) for i in right]
        assert (ranking.items[user, len(right) :] == NOTHING).all()
        assert np.isneginf(ranking.scores[user, len(right) :]).all()
