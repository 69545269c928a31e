"""Metrics against a plain oracle; what splits hold out; histories' weights."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest

from models.recommender.errors import TooLittleData
from models.recommender.histories import group, histories_of, history_rule, weigh
from models.recommender.interactions import Interactions, interactions_of
from models.recommender.metrics import ranking_metrics
from models.recommender.sources import INTERACTION_FILES
from models.recommender.splits import split

DAY_US = 86_400_000_000


def _interactions(rows: list[tuple[str, str, int, str, float]]) -> Interactions:
    user, item, time, kind, value = zip(*rows, strict=True)
    columns = [[str(n) for n in range(len(rows))], user, item, time, kind, value]
    arrays = [pa.array(c).cast(f.type) for c, f in zip(columns, INTERACTION_FILES.schema, strict=True)]
    return interactions_of(pa.table(arrays, schema=INTERACTION_FILES.schema))


def _random(users: int, items: int, rows: int, seed: int) -> Interactions:
    random = np.random.default_rng(seed)
    return _interactions(
        [
            (f"u{random.integers(users)}", f"i{random.integers(items)}", int(t) * 1_000_000, "view", 1.0)
            for t in np.sort(random.integers(0, 90 * 86_400, rows))
        ]
    )


def _oracle(ranked: list[list[int]], held: list[set[int]]) -> tuple[float, float, float, int]:
    ndcg, precision, recall = [], [], []
    for row, relevant in zip(ranked, held, strict=True):
        if relevant:
            gain = sum(1 / math.log2(place + 1) for place, item in enumerate(row, start=1) if item in relevant)
            ideal = sum(1 / math.log2(place + 1) for place in range(1, min(len(relevant), 10) + 1))
            hits = len(relevant & set(row))
            ndcg.append(gain / ideal)
            precision.append(hits / 10)
            recall.append(hits / len(relevant))
    n = len(ndcg)
    return sum(ndcg) / n, sum(precision) / n, sum(recall) / n, n


@pytest.mark.parametrize("seed", range(5))
def test_metrics_equal_their_definitions(seed: int) -> None:
    random = np.random.default_rng(seed)
    ranked = np.array([random.permutation(40)[:10] for _ in range(60)])
    ranked[::5, 7:] = -1
    held = [set(random.permutation(45)[: random.integers(0, 25)].tolist()) for _ in range(60)]
    row = np.repeat(np.arange(60), [len(one) for one in held])
    item = np.array([item for one in held for item in sorted(one)])
    found = ranking_metrics(ranked, row, item)
    right = _oracle([[i for i in one if i >= 0] for one in ranked.tolist()], held)
    assert (found.ndcg_at_10, found.precision_at_10, found.recall_at_10, found.users) == pytest.approx(right, rel=1e-12)


def test_metrics_need_somebody() -> None:
    nothing = np.empty(0, dtype=np.int64)
    with pytest.raises(ValueError, match="no user has a held-out item"):
        ranking_metrics(np.zeros((3, 10), dtype=np.int64), nothing, nothing)


def test_split_by_user_holds_out_a_quarter_of_each_users_items() -> None:
    interactions = _random(30, 50, 2000, 1)
    held = split(interactions, "user", seed=3)
    train, every = set(held.train.pair.tolist()), set(interactions.pair.tolist())
    out = set((held.held_user * 50 + held.held_item).tolist())
    assert train | out == every
    assert not train & out
    for user in range(30):
        had = sum(pair // 50 == user for pair in every)
        assert sum(pair // 50 == user for pair in out) == round(had / 4)
    again, other = split(interactions, "user", seed=3), split(interactions, "user", seed=4)
    assert (again.held_item == held.held_item).all()
    assert not np.array_equal(other.held_item, held.held_item)


def test_split_in_time_looks_only_back() -> None:
    interactions = _random(30, 50, 2000, 1)
    held = split(interactions, "time", seed=0)
    assert held.train.time_us.max() < held.cutoff_us
    assert len(held.train.user) == pytest.approx(1500, abs=1)
    later = interactions.where(interactions.time_us >= held.cutoff_us)
    # New pairs only, of users who were there before.
    right = set(later.pair.tolist()) - set(held.train.pair.tolist())
    right = {pair for pair in right if pair // 50 in set(held.train.user.tolist())}
    assert set((held.held_user * 50 + held.held_item).tolist()) == right


def test_nothing_to_hold_out_is_named() -> None:
    with pytest.raises(TooLittleData, match="split by user"):
        split(_interactions([("u", "i", 0, "view", 1.0)]), "user", seed=0)


def test_interactions_are_relative_to_their_kind() -> None:
    found = _interactions([("b", "y", 5, "view", 0.2), ("a", "x", 6, "rating", 5.0), ("a", "y", 7, "view", 0.6)])
    assert found.user_ids.to_pylist() == ["a", "b"]
    assert found.user.tolist() == [1, 0, 0]
    assert found.item.tolist() == [1, 0, 1]
    assert found.typical_values == {"rating": 5.0, "view": pytest.approx(0.4)}
    assert found.value.tolist() == pytest.approx([0.5, 1.0, 1.5])


def test_weights_halve_with_age_and_follow_values() -> None:
    rule = history_rule(30.0, {"view": 1.0})
    age, value = np.array([0, 30, 60, 5000, -3, 0, 0, 0]), np.array([1, 1, 1, 1, 1, 0.5, 100.0, 0.0])
    assert weigh(rule, age, value).tolist() == [1024, 512, 256, 1, 1024, 512, 2048, 0]
    assert weigh(history_rule(None, {}), age, np.ones(8)).tolist() == [1024] * 8


def test_histories_keep_the_weightiest_of_each_item() -> None:
    user, item, weight = np.array([2, 0, 2, 2]), np.array([5, 1, 5, 3]), np.array([7, 4, 9, 2])
    found = group(3, user, item, weight)
    assert (found.items.tolist(), found.weights.tolist(), found.starts.tolist()) == ([1, 3, 5], [4, 2, 9], [0, 1, 1])
    some = found.of(np.array([2, 1]))
    assert (some.items.tolist(), some.weights.tolist(), some.starts.tolist()) == ([3, 5], [2, 9], [0, 2])
    interactions = _interactions([("a", "x", 0, "view", 1.0), ("a", "x", 40 * DAY_US, "view", 1.0)])
    assert histories_of(interactions, history_rule(40.0, {}), 80 * DAY_US).weights.tolist() == [512]
