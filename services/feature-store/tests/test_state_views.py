"""Plans of several releases read as one, and which views of a state are whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
import redis
from feature_store import keys as names
from feature_store import state_views
from feature_store.definitions import Count, DefinitionError, FeaturePlan, RequestFeature, days
from feature_store.plan_union import fingerprints, part_of, united
from feature_store.updates import StateWriter

from models.fraud.features import PLAN

CUSTOMER = PLAN.views[0]
RUSH = replace(CUSTOMER, name="customer_rush", aggregations=(Count(),), windows=(timedelta(hours=1),))
WITH_RUSH = replace(PLAN, views=(RUSH, *PLAN.views))


def test_a_plan_that_has_it_all_is_the_union() -> None:
    assert united(PLAN, PLAN) is PLAN
    assert united(WITH_RUSH, PLAN) is WITH_RUSH
    both = united(PLAN, WITH_RUSH)
    assert both.views == (*PLAN.views, RUSH)
    assert both.features[: len(PLAN.features)] == PLAN.features
    assert part_of(PLAN, PLAN) is None


def test_a_part_is_the_plan_s_own_vector() -> None:
    both = united(PLAN, WITH_RUSH)
    row = np.arange(len(both.features), dtype=np.float32)
    for plan in (PLAN, WITH_RUSH):
        part = part_of(plan, both)
        assert part is not None
        assert [both.features[int(c)] for c in row[part.columns]] == list(plan.features)
        assert [both.views[v] for v in part.views] == list(plan.views)
    with pytest.raises(DefinitionError, match="customer_rush"):
        part_of(WITH_RUSH, PLAN)


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (replace(PLAN, views=(replace(CUSTOMER, windows=days(2)), *PLAN.views[1:])), "a name of its own"),
        (replace(PLAN, max_step=timedelta(days=1)), "max_step"),
        (replace(PLAN, views=tuple(replace(v, lateness=timedelta(hours=1)) for v in PLAN.views)), "lateness"),
        (
            replace(PLAN, request_features=(RequestFeature(PLAN.request_features[0].name, "night"),)),
            PLAN.request_features[0].name,
        ),
    ],
)
def test_what_cannot_be_served_side_by_side_is_refused(other: FeaturePlan, told: str) -> None:
    with pytest.raises(DefinitionError, match=told):
        united(PLAN, other)


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


def test_a_view_is_whole_while_every_writer_keeps_it(client: redis.Redis) -> None:
    assert state_views.served(client) == state_views.StateViews(names.FIRST_VERSION, None)
    StateWriter(client, WITH_RUSH, "one")
    assert state_views.served(client).whole == fingerprints(WITH_RUSH)
    StateWriter(client, PLAN, "two")
    assert state_views.served(client).whole == fingerprints(PLAN), "it misses what the second one writes"
    StateWriter(client, WITH_RUSH, "three")
    assert state_views.served(client).whole == fingerprints(PLAN), "only a rebuild brings it back"
    client.set(names.VERSION_POINTER, "2")
    state_views.record(client, "2", WITH_RUSH)
    assert state_views.served(client) == state_views.StateViews("2", fingerprints(WITH_RUSH))


def test_how_far_the_state_has_absorbed_is_what_its_last_shard_says(client: redis.Redis) -> None:
    assert state_views.absorbed_until(client, ["customer"], 4) == 0
    writer = StateWriter(client, PLAN, "w")
    writer.claim("customer", PLAN.topic_of("customer"), "topic", range(4))
    writer.heartbeat("customer", {0: 50, 1: 40, 2: 60})
    assert state_views.absorbed_until(client, ["customer"], 4) == 0
    writer.heartbeat("customer", {3: 70})
    assert state_views.absorbed_until(client, ["customer"], 4) == 40
