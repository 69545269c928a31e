"""The definition language: JSON there and back, names and order of features, and every refusal."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from feature_store.definitions import (
    Aggregation,
    Count,
    DefinitionError,
    Entity,
    FeaturePlan,
    FeatureView,
    LabelSource,
    Mean,
    RequestFeature,
    Share,
    Source,
    Sum,
    days,
    window_name,
)

RIDES = Source("rides", "m.Ride", "rides", key="rider", id="ride", time="at_us", fields=("fare", "tip"))
FOOD = Source("food", "m.Meal", "food", key="rider", id="meal", time="at_us", fields=("fare",))
NOISE = LabelSource("noise", "m.Noise", "noise", "ride", "ride", "at_us", "heard_at_us", "loud", labels=RIDES)
RIDER, CAR = Entity("rider", "rider"), Entity("car", "car")
MINE = FeatureView("mine", RIDER, RIDES, (Count(), Sum("tip"), Mean("fare")), (timedelta(hours=12), timedelta(days=2)))
CARS = FeatureView("car", CAR, RIDES, (Share(NOISE, "loud"), Count()), days(7), delay=timedelta(hours=1))
PLAN = FeaturePlan(
    "taxi", RIDES, (RequestFeature("fare", "field", "fare"), RequestFeature("late", "night")), (MINE, CARS)
)


def test_json_there_and_back_is_the_same_plan() -> None:
    text = json.dumps(PLAN.to_json())
    back = FeaturePlan.from_json(json.loads(text))
    assert back == PLAN
    assert back.fingerprint == PLAN.fingerprint
    assert json.dumps(back.to_json()) == text


def test_features_come_by_request_then_view_then_window_then_aggregation() -> None:
    assert PLAN.features == (
        "fare", "late",
        "mine_count_12h", "mine_sum_tip_12h", "mine_mean_fare_12h",
        "mine_count_2d", "mine_sum_tip_2d", "mine_mean_fare_2d",
        "car_loud_share_7d", "car_count_7d",
    )  # fmt: skip
    assert MINE.columns == ("fare", "tip")
    assert CARS.columns == ()


def test_what_follows_from_a_declaration() -> None:
    assert PLAN.entities == (RIDER, CAR)
    assert PLAN.label_sources == (NOISE,)
    assert PLAN.topic_of("rider") == "rides"
    assert PLAN.topic_of("car") == "trine.by-car"
    assert (MINE.rekeyed, CARS.rekeyed) == (False, True)
    day = 86_400_000_000
    assert MINE.retention_us == 2 * day + day
    assert CARS.retention_us == 7 * day + day // 24 + day
    assert PLAN.lateness_us == day
    assert PLAN.max_step_us == 31 * day
    with pytest.raises(DefinitionError, match="no view of entity 'moon'"):
        PLAN.topic_of("moon")


@pytest.mark.parametrize(
    "other",
    [
        replace(PLAN, max_step=timedelta(days=30)),
        replace(PLAN, views=(replace(MINE, delay=timedelta(seconds=1)), CARS)),
        replace(PLAN, views=tuple(replace(v, lateness=timedelta(hours=1)) for v in PLAN.views)),
        replace(PLAN, views=(MINE, replace(CARS, windows=days(8)))),
    ],
)
def test_fingerprint_changes_with_what_changes_values(other: FeaturePlan) -> None:
    assert other.fingerprint != PLAN.fingerprint


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"windows": ()}, "windows must be one or more positive spans"),
        ({"windows": (timedelta(0),)}, "windows must be one or more positive spans"),
        ({"windows": (timedelta(days=-1),)}, "windows must be one or more positive spans"),
        ({"delay": timedelta(seconds=-1)}, "delay and lateness must not be negative"),
        ({"lateness": timedelta(seconds=-1)}, "delay and lateness must not be negative"),
        ({"aggregations": ()}, "aggregations must not be empty"),
        ({"storage": "tiled"}, "storage is 'tiled'"),
        (
            {"aggregations": (Mean("speed"),)},
            r"field 'speed' is not declared by source rides \(its fields: fare, tip\)",
        ),
        ({"aggregations": (Share(NOISE, "loud"),)}, "a share needs a positive delay"),
    ],
)
def test_a_view_that_cannot_be_run_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(DefinitionError, match=f"view mine: {says}"):
        replace(MINE, **change)


def test_a_view_has_one_label_source_and_it_labels_its_events() -> None:
    other = replace(NOISE, name="smell")
    both: tuple[Aggregation, ...] = (Share(NOISE, "loud"), Share(other, "smelly"))
    with pytest.raises(DefinitionError, match=r"one label source a view, not \['noise', 'smell'\]"):
        replace(CARS, aggregations=both)
    with pytest.raises(DefinitionError, match="its label source must label rides"):
        replace(CARS, aggregations=(Share(replace(NOISE, labels=FOOD), "loud"),))


def test_request_features_are_checked() -> None:
    with pytest.raises(DefinitionError, match="feature x: kind is 'moon'"):
        RequestFeature("x", "moon")  # type: ignore[arg-type]  # what the test is about
    with pytest.raises(DefinitionError, match="feature x: kind 'field' needs a field name"):
        RequestFeature("x", "field")
    with pytest.raises(DefinitionError, match="feature x: kind 'field' needs a field name, other kinds take none"):
        RequestFeature("x", "night", "fare")


def test_a_plan_that_cannot_be_run_is_refused() -> None:
    with pytest.raises(DefinitionError, match="feature names must be unique, doubled: mine_count_1d"):
        replace(PLAN, views=(replace(MINE, windows=days(1, 1), aggregations=(Count(),)),))
    with pytest.raises(DefinitionError, match="feature x: source rides has no field 'speed'"):
        replace(PLAN, request_features=(RequestFeature("x", "field", "speed"),))
    with pytest.raises(DefinitionError, match="view meals: reads food; the request carries rides"):
        replace(PLAN, views=(FeatureView("meals", RIDER, FOOD, (Count(),), days(1)),))
    with pytest.raises(DefinitionError, match="must be a whole number of seconds"):
        replace(PLAN, views=(replace(MINE, windows=(timedelta(milliseconds=1500),)),))


def test_a_plan_has_one_lateness() -> None:
    """One admission decides for all views: a view of less lateness would have dropped what late requests must see."""
    with pytest.raises(DefinitionError, match="must declare one lateness, found 1:00:00, 1 day"):
        replace(PLAN, views=(replace(MINE, lateness=timedelta(hours=1)), CARS))


def test_window_names_use_the_largest_unit() -> None:
    spans = [timedelta(days=7), timedelta(hours=36), timedelta(minutes=90), timedelta(seconds=61)]
    assert [window_name(s) for s in spans] == ["7d", "36h", "90m", "61s"]


def _without(path: tuple[Any, ...]) -> dict[str, Any]:
    data: Any = copy.deepcopy(PLAN.to_json())
    at = data
    for step in path[:-1]:
        at = at[step]
    del at[path[-1]]
    return dict(data)


def _with(path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    data: Any = copy.deepcopy(PLAN.to_json())
    at = data
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    return dict(data)


@pytest.mark.parametrize(
    "path",
    [
        ("model",), ("source",), ("views",), ("request_features",), ("max_step_us",), ("source", "fields"),
        ("source", "topic"), ("views", 0, "windows_us"), ("views", 0, "storage"), ("views", 0, "entity"),
        ("views", 0, "entity", "key"), ("views", 0, "aggregations", 0, "kind"),
        ("views", 1, "aggregations", 0, "label"), ("views", 1, "aggregations", 0, "label", "value"),
        ("request_features", 0, "kind"),
    ],
)  # fmt: skip
def test_json_without_a_part_is_refused_by_its_name(path: tuple[Any, ...]) -> None:
    with pytest.raises(DefinitionError, match=f"'{path[-1]}'"):
        FeaturePlan.from_json(_without(path))


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("views", 0, "storage"), "tiled", "storage is 'tiled'"),
        (("views", 0, "aggregations", 0), {"kind": "median"}, "aggregation kind is 'median'"),
        (("views", 0, "windows_us"), ["week"], "feature plan: "),
        (("views", 0, "windows_us"), [10**30], "feature plan: "),
        (("views", 0, "entity", "colour"), "red", "colour"),
        (("source", "colour"), "red", "colour"),
        (("source",), None, "feature plan: "),
        (("views",), None, "feature plan: "),
        (("request_features", 0, "colour"), "red", "colour"),
        (("features",), ["late", "fare"], "feature order"),
        (("features",), PLAN.to_json()["features"][:-1], "feature order"),
    ],
)
def test_json_with_something_else_is_refused(path: tuple[Any, ...], value: Any, says: str) -> None:
    with pytest.raises(DefinitionError, match=says):
        FeaturePlan.from_json(_with(path, value))
