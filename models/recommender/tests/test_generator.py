"""Generated interactions have the properties that their process promises, and are the same for the same seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from feature_store.dataset import load, times_us
from numpy.typing import NDArray

from models.recommender.errors import ParameterError
from models.recommender.generator import generate, make_world
from models.recommender.generator_parameters import GeneratorParameters
from models.recommender.sources import INTERACTION_FILES

DAY_US = 86_400_000_000
PARAMETERS = GeneratorParameters(users=400, items=200, days=60, views=60.0, drift=0.8, seed=5)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "interactions"
    generate(PARAMETERS, path)
    return path


@pytest.fixture(scope="module")
def table(made: Path) -> pa.Table:
    return load(made, INTERACTION_FILES)


def _numbers(table: pa.Table, column: str) -> NDArray[np.int64]:
    return np.asarray(table.column(column).cast(pa.int64()).to_numpy(), dtype=np.int64)


def test_same_parameters_same_files(made: Path, tmp_path: Path) -> None:
    description, fresh = generate(PARAMETERS, tmp_path / "again")
    assert fresh
    files = sorted(path.relative_to(made) for path in made.rglob("*.parquet"))
    assert len(files) == PARAMETERS.days
    for file in files:
        assert (made / file).read_bytes() == (tmp_path / "again" / file).read_bytes()
    assert generate(PARAMETERS, made) == (description, False)


def test_views_happen_once_and_likes_follow_them(table: pa.Table) -> None:
    views, likes = (table.filter(pc.equal(table.column("kind"), kind)) for kind in ("view", "like"))
    pairs = [_numbers(one, "user_id") * 1000 + _numbers(one, "item_id") for one in (views, likes)]
    assert len(np.unique(pairs[0])) == len(pairs[0])
    order = np.argsort(pairs[0])
    place = order[np.searchsorted(pairs[0][order], pairs[1])]
    assert (pairs[0][place] == pairs[1]).all()
    after = times_us(likes, "event_time") - times_us(views, "event_time")[place]
    assert ((after > 0) & (after <= 600_000_000)).all()
    assert _numbers(table, "interaction_id").tolist() == list(range(table.num_rows))
    seen = views.column("value").to_numpy()
    assert ((seen > 0) & (seen <= 1)).all()
    # More of an item seen, more likes.
    assert seen[place].mean() > seen.mean() + 0.05


def test_popularity_tastes_and_releases(table: pa.Table) -> None:
    world = make_world(PARAMETERS)
    views = table.filter(pc.equal(table.column("kind"), "view"))
    user, item = _numbers(views, "user_id"), _numbers(views, "item_id")
    day = (times_us(views, "event_time") - times_us(views, "event_time").min() // DAY_US * DAY_US) // DAY_US
    assert (day >= np.maximum(world.released[item], world.joined[user])).all()
    counts = np.sort(np.bincount(item, minlength=200))[::-1]
    assert counts[:20].sum() > 3 * counts[100:120].sum()
    # Early views match the tastes of the beginning better than chance does, late ones those of the end.
    chance = np.random.default_rng(0).permutation(item)
    for tastes, rows in ((world.tastes[0], day < 15), (world.tastes[1], day >= 45)):
        match = (tastes[user[rows]] * world.item_tastes[:, item[rows]].T).sum(axis=1).mean()
        by_chance = (tastes[user[rows]] * world.item_tastes[:, chance[rows]].T).sum(axis=1).mean()
        assert match > 1.5 * by_chance


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"users": 0}, "users is 0"), ({"drift": 1.5}, "drift is 1.5"), ({"zipf": -1.0}, "zipf is -1.0")],
)
def test_parameters_out_of_range_are_named(wrong: dict[str, float], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        GeneratorParameters(**wrong)  # type: ignore[arg-type]
