"""Which views the service shows where the folder has several releases."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import redis
from feature_store.definitions import FeaturePlan
from feature_store.keys import FIRST_VERSION
from feature_store.service.shown_plan import NoPlan, shown_plan
from feature_store.state_views import keep

from models.fraud.features import PLAN

CUSTOMER, TERMINAL = PLAN.views
CHANGED = replace(PLAN, views=(replace(CUSTOMER, windows=CUSTOMER.windows[:2]), TERMINAL))
ADDED = replace(PLAN, views=(*PLAN.views, replace(CUSTOMER, name="customer_short", windows=CUSTOMER.windows[:1])))


@pytest.fixture
def client(redis_url: str) -> redis.Redis:
    return redis.Redis.from_url(redis_url)


def folder_of(tmp_path: Path, **plans: FeaturePlan) -> Path:
    """Releases, each made a day after the one before."""
    for day, (name, plan) in enumerate(plans.items(), 1):
        (tmp_path / name).mkdir()
        made = {"plan": plan.to_json(), "created_at": f"2026-01-{day:02d}"}
        (tmp_path / name / "manifest.json").write_text(json.dumps(made))
    return tmp_path


def test_views_of_every_release_are_shown(tmp_path: Path, client: redis.Redis) -> None:
    releases = folder_of(tmp_path, added=ADDED, newest=PLAN)
    assert set(shown_plan(releases, "", client).views) == set(ADDED.views)
    assert shown_plan(releases, "newest", client) == PLAN


def test_a_name_stands_for_what_the_state_has_under_it(tmp_path: Path, client: redis.Redis) -> None:
    releases = folder_of(tmp_path, serves=PLAN, staged=CHANGED)
    assert shown_plan(releases, "", client).views == CHANGED.views
    keep(client, FIRST_VERSION, PLAN)
    assert shown_plan(releases, "", client).views == PLAN.views


def test_a_redis_that_is_away_leaves_the_release_made_last(tmp_path: Path) -> None:
    nowhere = redis.Redis(port=1, socket_connect_timeout=1)
    assert shown_plan(folder_of(tmp_path, old=PLAN, new=CHANGED), "", nowhere).views == CHANGED.views


def test_a_release_that_cannot_be_read_keeps_no_other_from_being_shown(tmp_path: Path, client: redis.Redis) -> None:
    releases = folder_of(tmp_path, serves=PLAN, damaged=ADDED)
    described = PLAN.to_json() | {"views": [{"name": "customer"}]}
    for broken in ("{", json.dumps({"plan": described, "created_at": "2026-01-09"}), "[]"):
        (tmp_path / "damaged" / "manifest.json").write_text(broken)
        assert shown_plan(releases, "", client) == PLAN
    (tmp_path / "serves" / "manifest.json").write_text("{")
    with pytest.raises(NoPlan, match="that can be read"):
        shown_plan(releases, "", client)


def test_a_folder_without_a_plan_is_refused(tmp_path: Path, client: redis.Redis) -> None:
    with pytest.raises(NoPlan, match="make one with `trine train`"):
        shown_plan(tmp_path, "", client)
    with pytest.raises(NoPlan, match="fraud-1"):
        shown_plan(tmp_path, "fraud-1", client)
