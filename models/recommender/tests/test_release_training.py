"""From interactions to a release and its recommendations: better than popularity, exact, the same again."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from feature_store.source_files import DAY_US, times_us
from model_release import open_release
from model_release.recommender_writer import golden_difference

from models.recommender.errors import TooLittleData
from models.recommender.evaluation import LATER, evaluate_release, measure_release, training_histories
from models.recommender.generator import generate
from models.recommender.generator_parameters import GeneratorParameters
from models.recommender.interactions import interactions_of, load_interactions, load_table
from models.recommender.metrics import ranking_metrics
from models.recommender.recipe import Recipe
from models.recommender.release_training import Trained, train_release
from models.recommender.scoring import HISTORY, RecommendationScoring, Recommender
from models.recommender.training import fit

RECIPE = Recipe(dimensions=16, epochs=20, least_steps=150, half_life_days=40.0, by_value=True)
START_US = 17_622 * DAY_US  # 2018-04-01
UNTIL_US = START_US + 50 * DAY_US


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "interactions"
    generate(GeneratorParameters(users=500, items=150, days=60, views=50.0, tastes=6, seed=2), path)
    return path


@pytest.fixture(scope="module")
def trained(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train_release(dataset, tmp_path_factory.mktemp("releases"), RECIPE, tuned=False, to_us=UNTIL_US)


@pytest.fixture(scope="module")
def recommender(trained: Trained) -> Recommender:
    return Recommender(open_release(trained.release.path, "recommender"))


def _histories(table: pa.Table, cutoff_us: int) -> dict[str, list[dict[str, Any]]]:
    """Users' interactions before the cut-off, as the batch job collects them."""
    found: dict[str, list[dict[str, Any]]] = {}
    times = times_us(table, "event_time")
    for row, time in zip(table.to_pylist(), times.tolist(), strict=True):
        if time < cutoff_us:
            entry = {name: row[name] for name in ("item_id", "kind", "value")}
            found.setdefault(row["user_id"], []).append({**entry, "age_days": (cutoff_us - time) // DAY_US})
    return found


def test_towers_are_better_than_popularity_on_both_splits(trained: Trained) -> None:
    for sides in trained.figures.values():
        assert sides["towers"]["ndcg_at_10"] > 1.15 * sides["popularity"]["ndcg_at_10"]
        assert sides["towers"]["recall_at_10"] > 1.1 * sides["popularity"]["recall_at_10"]


def test_release_says_what_was_measured(trained: Trained, dataset: Path) -> None:
    release = open_release(trained.release.path, "recommender")
    assert golden_difference(release) == ""
    assert release.manifest.metrics["splits"] == trained.figures
    assert release.manifest.training["to"] == "2018-05-20"
    card = (release.path / "model_card.md").read_text()
    assert str(trained.figures["time"]["towers"]["ndcg_at_10"]) in card
    numbered = load_interactions(dataset, None, UNTIL_US)
    assert release.item_ids == tuple(numbered.item_ids.to_pylist())
    users = [len(np.unique(numbered.user[numbered.item == item])) for item in range(len(release.item_ids))]
    assert release.item_popularity.tolist() == users


def test_same_data_and_seed_same_release(trained: Trained, dataset: Path, tmp_path: Path) -> None:
    again = train_release(dataset, tmp_path, RECIPE, tuned=False, to_us=UNTIL_US)
    assert again.release.id == trained.release.id
    for file in ("module.pt2", "item_embeddings.f32"):
        assert (again.release.path / file).read_bytes() == (trained.release.path / file).read_bytes()


def test_embeddings_follow_the_trained_towers(trained: Trained, recommender: Recommender, dataset: Path) -> None:
    """Rounding moves an embedding by less than a thousandth of what they vary by."""
    numbered = load_interactions(dataset, None, UNTIL_US)
    histories = training_histories(numbered, RECIPE, UNTIL_US)
    towers = fit(histories, len(numbered.item_ids), RECIPE)
    found = recommender.embed(histories)
    for user in range(0, 500, 50):
        mine = histories.of(np.array([user]))
        sums = mine.weights @ towers.vectors[mine.items].astype(np.float64)
        right = sums / np.sqrt((mine.weights.astype(np.float64) ** 2).sum())
        assert found[user, :-1] == pytest.approx(right, abs=1e-3 * float(found[:, :-1].std()))
    assert recommender.release.item_embeddings[:, :-1] == pytest.approx(towers.targets, abs=1e-4)


def test_recommendations_equal_brute_force(recommender: Recommender, dataset: Path) -> None:
    """Unseen items by exact scores, whatever the batch; a user without a known item gets what is liked by all."""
    histories = _histories(load_table(dataset), UNTIL_US)
    users = sorted(histories)[:60]
    rows = [*(histories[user] for user in users), [], None, [{**histories[users[0]][0], "item_id": "never heard of"}]]
    column = pa.array(rows, HISTORY)
    embeddings, rankings = recommender.recommend(column, 15)
    items, ids = recommender.release.item_embeddings, recommender.release.item_ids
    assert (embeddings[60:] == embeddings[60]).all()
    assert embeddings[60].tolist() == [0.0] * 16 + [1.0]
    for row in range(0, 63, 4):
        seen = {entry["item_id"] for entry in rows[row] or []}
        user = [Fraction(float(part)) for part in embeddings[row]]
        exact = [sum(a * Fraction(float(b)) for a, b in zip(user, item, strict=True)) for item in items]
        order = sorted((i for i in range(len(ids)) if ids[i] not in seen), key=lambda i: (-exact[i], i))[:15]
        found = rankings[row].as_py()
        assert [one["item"] for one in found] == [ids[i] for i in order]
        assert [one["score"] for one in found] == [float(np.float32(float(exact[i]))) for i in order]
    # In other batches, in other orders: the same bits.
    alone, ranking = recommender.recommend(pa.array([rows[7][::-1]], HISTORY), 15)  # type: ignore[index]
    assert (alone[0].view(np.int32) == embeddings[7].view(np.int32)).all()
    assert ranking[0] == rankings[7]


def test_a_value_of_nothing_is_seen_and_not_liked(recommender: Recommender) -> None:
    item = recommender.release.item_ids[3]
    rows = [[{"item_id": item, "age_days": 0, "kind": "view", "value": 0.0}], []]
    embeddings, rankings = recommender.recommend(pa.array(rows, HISTORY), 150)
    assert (embeddings[0] == embeddings[1]).all()
    ranked = [{one["item"] for one in rankings[row].as_py()} for row in range(2)]
    assert ranked[1] - ranked[0] == {item}


def test_a_job_scores_rows_in_an_executor(trained: Trained, recommender: Recommender, dataset: Path) -> None:
    scoring = RecommendationScoring(top=5, dimensions=17)
    scoring.open(trained.release.path)
    histories = list(_histories(load_table(dataset), UNTIL_US).values())[:20]
    batch = pa.record_batch({"key": [str(n) for n in range(20)], "history": pa.array(histories, HISTORY)})
    found = scoring.load(trained.release.path)(batch)
    added = pa.record_batch(list(found), schema=pa.schema(list(scoring.adds.items())))
    embeddings, items = recommender.recommend(batch.column("history"), 5)
    assert added.column("embedding").to_pylist() == embeddings.tolist()
    assert added.column("items").equals(items)
    assert scoring.golden(trained.release.path) == ""
    with pytest.raises(Exception, match="embeddings of length 17, the job publishes 65"):
        RecommendationScoring(top=5, dimensions=65).open(trained.release.path)


def test_evaluating_a_release(trained: Trained, recommender: Recommender, dataset: Path) -> None:
    found = evaluate_release(trained.release, dataset)
    assert set(found) == {"user", "time", LATER}
    # What came after training, once more by hand.
    table = load_table(dataset)
    histories = _histories(table, UNTIL_US)
    _, rankings = recommender.recommend(pa.array(list(histories.values()), HISTORY), 10)
    numbered = interactions_of(table)
    place = {item: number for number, item in enumerate(numbered.item_ids.to_pylist())}
    ranked = np.array([[place[one["item"]] for one in row] for row in rankings.to_pylist()])
    names = list(histories)
    had = {name: {entry["item_id"] for entry in entries} for name, entries in histories.items()}
    later = {
        (names.index(row["user_id"]), place[row["item_id"]])
        for row, time in zip(table.to_pylist(), times_us(table, "event_time").tolist(), strict=True)
        if time >= UNTIL_US and row["user_id"] in had and row["item_id"] not in had[row["user_id"]]
    }
    held = np.array(sorted(later))
    assert found[LATER]["release"] == ranking_metrics(ranked, held[:, 0], held[:, 1]).rounded()
    with pytest.raises(TooLittleData, match="no user with a history before"):
        measure_release(trained.release, table, START_US + 60 * DAY_US)


def test_tuning_keeps_the_best(dataset: Path, tmp_path: Path) -> None:
    shares: list[float] = []
    start = Recipe(dimensions=4, epochs=2, least_steps=4, l2=2e-4)
    found = train_release(dataset, tmp_path, start, validate_by="user", to_us=UNTIL_US, advance=shares.append)
    assert sum(shares) == pytest.approx(1.0)
    validation = found.release.manifest.metrics["validation"]
    assert isinstance(validation, dict)
    assert float(str(validation["ndcg_at_10"])) > 0.0
    assert json.loads(json.dumps(found.release.manifest.training["recipe"]))["dimensions"] == 4


def test_too_little_data_is_named(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(TooLittleData, match="no interactions with a value above 0"):
        train_release(dataset, tmp_path / "releases", RECIPE, to_us=START_US)
    assert not (tmp_path / "releases").exists()
