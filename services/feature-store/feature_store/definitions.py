"""The definition language: entities, sources, labels, feature views and the plan that orders their features.

A model declares these once; every mode (gateway, worker, offline, Spark) runs what is declared. A plan travels as
JSON inside a release's manifest, so services need no model code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from typing import Any, Literal

MICROSECONDS_PER_SECOND = 1_000_000


class DefinitionError(ValueError):
    """A definition that cannot be run; the message names what and what would be right."""


def microseconds(span: timedelta) -> int:
    """`span` as whole microseconds."""
    return span // timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Entity:
    """What features describe. `key` is the field of every source that holds the entity's key."""

    name: str
    key: str


@dataclass(frozen=True, slots=True)
class Source:
    """A kind of event: protobuf `message` on `topic`, partitioned by field `key`.

    `id`, `time`: fields with the event's id (string) and event time (int64 microseconds).
    `fields`: the int64 fields that aggregations may use.
    """

    name: str
    message: str
    topic: str
    key: str
    id: str
    time: str
    fields: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LabelSource:
    """Events that say something about the events of `labels`, and when it became known.

    `id`: field with the labelled event's id; `time`: its event time; `known_at`: when the label became known
    (int64 microseconds); `value`: boolean field. The label with the latest `known_at` counts (at a tie: true).
    """

    name: str
    message: str
    topic: str
    key: str
    id: str
    time: str
    known_at: str
    value: str
    labels: Source


@dataclass(frozen=True, slots=True)
class Count:
    """How many events are in the window."""

    @property
    def suffix(self) -> str:
        return "count"


@dataclass(frozen=True, slots=True)
class Sum:
    """Sum of an int64 field."""

    field: str

    @property
    def suffix(self) -> str:
        return f"sum_{self.field}"


@dataclass(frozen=True, slots=True)
class Mean:
    """Mean of an int64 field: integer sum over integer count in float64; 0 for an empty window."""

    field: str

    @property
    def suffix(self) -> str:
        return f"mean_{self.field}"


@dataclass(frozen=True, slots=True)
class Share:
    """Share of the window's events whose label, as known at the feature's time, is true; 0 for an empty window."""

    label: LabelSource
    name: str

    @property
    def suffix(self) -> str:
        return f"{self.name}_share"


Aggregation = Count | Sum | Mean | Share


@dataclass(frozen=True)
class FeatureView:
    """Aggregations of one source's events per entity over windows `(t - W - delay, t - delay]` of event time.

    With `delay` zero an event sees itself and what is before it in the order (time, id). `lateness`: how far behind
    its stream an event may come and still be counted. Features are named `<view>_<aggregation>_<window>`.
    """

    name: str
    entity: Entity
    source: Source
    aggregations: tuple[Aggregation, ...]
    windows: tuple[timedelta, ...]
    delay: timedelta = timedelta(0)
    lateness: timedelta = timedelta(days=1)
    storage: Literal["exact"] = "exact"

    def __post_init__(self) -> None:
        if not self.windows or any(w <= timedelta(0) for w in self.windows):
            raise DefinitionError(f"view {self.name}: windows must be one or more positive spans, not {self.windows}")
        if self.delay < timedelta(0) or self.lateness < timedelta(0):
            raise DefinitionError(f"view {self.name}: delay and lateness must not be negative")
        if not self.aggregations:
            raise DefinitionError(f"view {self.name}: aggregations must not be empty")
        if self.storage != "exact":
            raise DefinitionError(f"view {self.name}: storage is {self.storage!r}, known is 'exact'")
        for name in self.columns:
            if name not in self.source.fields:
                raise DefinitionError(
                    f"view {self.name}: field {name!r} is not declared by source {self.source.name}"
                    f" (its fields: {', '.join(self.source.fields) or 'none'})"
                )
        if self.label is not None and self.delay <= timedelta(0):
            raise DefinitionError(f"view {self.name}: a share needs a positive delay, after which its labels count")
        labels = {a.label.name for a in self.aggregations if isinstance(a, Share)}
        if len(labels) > 1:
            raise DefinitionError(f"view {self.name}: one label source a view, not {sorted(labels)}")
        if any(a.label.labels.name != self.source.name for a in self.aggregations if isinstance(a, Share)):
            raise DefinitionError(f"view {self.name}: its label source must label {self.source.name}")

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Fields the state keeps for every event, sorted by name."""
        return tuple(sorted({a.field for a in self.aggregations if isinstance(a, Sum | Mean)}))

    @cached_property
    def label(self) -> LabelSource | None:
        """The label source of its shares, if it has any."""
        return next((a.label for a in self.aggregations if isinstance(a, Share)), None)

    @cached_property
    def features(self) -> tuple[str, ...]:
        """Feature names: by window, then by aggregation."""
        return tuple(f"{self.name}_{a.suffix}_{window_name(w)}" for w in self.windows for a in self.aggregations)

    @cached_property
    def windows_us(self) -> tuple[int, ...]:
        return tuple(microseconds(w) for w in self.windows)

    @cached_property
    def delay_us(self) -> int:
        return microseconds(self.delay)

    @cached_property
    def lateness_us(self) -> int:
        return microseconds(self.lateness)

    @cached_property
    def retention_us(self) -> int:
        """How much of an entity's past the state keeps, counted from its newest event."""
        return max(self.windows_us) + self.delay_us + self.lateness_us

    @cached_property
    def topic(self) -> str:
        """The log this view's shards follow: the source's topic, or the one re-keyed by the entity."""
        return self.source.topic if self.entity.key == self.source.key else f"trine.by-{self.entity.name}"

    @cached_property
    def rekeyed(self) -> bool:
        return self.entity.key != self.source.key


@dataclass(frozen=True, slots=True)
class RequestFeature:
    """A feature from the event itself. `kind`: `field` (an int64 field), `weekend` (Saturday or Sunday, UTC) or
    `night` (hour 0 to 6 UTC, both included)."""

    name: str
    kind: Literal["field", "weekend", "night"]
    field: str = ""

    def __post_init__(self) -> None:
        if self.kind not in ("field", "weekend", "night"):
            raise DefinitionError(f"feature {self.name}: kind is {self.kind!r}, known are field, weekend, night")
        if (self.kind == "field") != bool(self.field):
            raise DefinitionError(f"feature {self.name}: kind 'field' needs a field name, other kinds take none")


@dataclass(frozen=True)
class FeaturePlan:
    """Everything a release needs to make its vectors; the vector's order is `features`.

    `source` is the event a request carries. `max_step`: one event moves a shard's clock by no more than this.
    """

    model: str
    source: Source
    request_features: tuple[RequestFeature, ...]
    views: tuple[FeatureView, ...]
    max_step: timedelta = timedelta(days=31)
    features: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        names = [f.name for f in self.request_features] + [n for v in self.views for n in v.features]
        doubled = sorted({n for n in names if names.count(n) > 1})
        if doubled:
            raise DefinitionError(f"plan {self.model}: feature names must be unique, doubled: {', '.join(doubled)}")
        for f in self.request_features:
            if f.kind == "field" and f.field not in self.source.fields:
                raise DefinitionError(f"feature {f.name}: source {self.source.name} has no field {f.field!r}")
        for v in self.views:
            if v.source.name != self.source.name:
                raise DefinitionError(f"view {v.name}: reads {v.source.name}; the request carries {self.source.name}")
        # Events are admitted once, for all views; a view that kept less than another admits would be cut short.
        if len(spans := sorted({v.lateness for v in self.views})) > 1:
            raise DefinitionError(
                f"plan {self.model}: its views must declare one lateness, found {', '.join(map(str, spans))}"
            )
        object.__setattr__(self, "features", tuple(names))

    @cached_property
    def entities(self) -> tuple[Entity, ...]:
        """Distinct entities of the views, in order."""
        return tuple({v.entity.name: v.entity for v in self.views}.values())

    @cached_property
    def label_sources(self) -> tuple[LabelSource, ...]:
        return tuple({v.label.name: v.label for v in self.views if v.label is not None}.values())

    @cached_property
    def lateness_us(self) -> int:
        """How far behind its partition's clock an event of the source may come."""
        return max((v.lateness_us for v in self.views), default=0)

    @cached_property
    def max_step_us(self) -> int:
        return microseconds(self.max_step)

    def views_of(self, entity: str) -> tuple[FeatureView, ...]:
        return tuple(v for v in self.views if v.entity.name == entity)

    def topic_of(self, entity: str) -> str:
        """The log that the shards of `entity` follow."""
        for v in self.views_of(entity):
            return v.topic
        raise DefinitionError(f"plan {self.model} has no view of entity {entity!r}")

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits that change with anything that changes a feature's value or its state."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """A JSON-able description; `from_json` gives an equal plan back."""
        return {
            "model": self.model,
            "source": _source_json(self.source),
            "request_features": [{"name": f.name, "kind": f.kind, "field": f.field} for f in self.request_features],
            "views": [_view_json(v) for v in self.views],
            "max_step_us": self.max_step_us,
            "features": list(self.features),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> FeaturePlan:
        """The plan that `to_json` described. Raises DefinitionError that names what is missing or unknown."""
        try:
            source = _source_of(data["source"])
            plan = cls(
                model=data["model"],
                source=source,
                request_features=tuple(RequestFeature(**f) for f in data["request_features"]),
                views=tuple(_view_of(v, source) for v in data["views"]),
                max_step=timedelta(microseconds=data["max_step_us"]),
            )
        except KeyError as error:
            raise DefinitionError(f"feature plan: {error.args[0]!r} is missing") from error
        except (TypeError, OverflowError) as error:
            raise DefinitionError(f"feature plan: {error}") from error
        if list(plan.features) != list(data.get("features", plan.features)):
            raise DefinitionError("feature plan: its feature order is not the one its views give")
        return plan


def window_name(window: timedelta) -> str:
    """`7d`, `12h`, `5m` or `30s`: the largest unit that divides the window."""
    us = microseconds(window)
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)):
        if us % (size * MICROSECONDS_PER_SECOND) == 0:
            return f"{us // (size * MICROSECONDS_PER_SECOND)}{unit}"
    raise DefinitionError(f"window {window}: must be a whole number of seconds")


def days(*counts: int) -> tuple[timedelta, ...]:
    """Windows of so many days each."""
    return tuple(timedelta(days=n) for n in counts)


def _source_json(source: Source) -> dict[str, Any]:
    names = ("name", "message", "topic", "key", "id", "time")
    return {n: getattr(source, n) for n in names} | {"fields": list(source.fields)}


def _source_of(data: Mapping[str, Any]) -> Source:
    return Source(**{**data, "fields": tuple(data["fields"])})


def _label_json(label: LabelSource) -> dict[str, Any]:
    names = ("name", "message", "topic", "key", "id", "time", "known_at", "value")
    return {n: getattr(label, n) for n in names}


def _aggregation_json(a: Aggregation) -> dict[str, Any]:
    if isinstance(a, Share):
        return {"kind": "share", "name": a.name, "label": _label_json(a.label)}
    if isinstance(a, Count):
        return {"kind": "count"}
    return {"kind": type(a).__name__.lower(), "field": a.field}


def _aggregation_of(data: Mapping[str, Any], source: Source) -> Aggregation:
    kind = data["kind"]
    if kind == "count":
        return Count()
    if kind == "sum":
        return Sum(data["field"])
    if kind == "mean":
        return Mean(data["field"])
    if kind == "share":
        return Share(LabelSource(**data["label"], labels=source), data["name"])
    raise DefinitionError(f"aggregation kind is {kind!r}, known are count, sum, mean, share")


def _view_json(v: FeatureView) -> dict[str, Any]:
    return {
        "name": v.name,
        "entity": {"name": v.entity.name, "key": v.entity.key},
        "aggregations": [_aggregation_json(a) for a in v.aggregations],
        "windows_us": list(v.windows_us),
        "delay_us": v.delay_us,
        "lateness_us": v.lateness_us,
        "storage": v.storage,
    }


def _view_of(data: Mapping[str, Any], source: Source) -> FeatureView:
    aggregations: Sequence[Aggregation] = [_aggregation_of(a, source) for a in data["aggregations"]]
    return FeatureView(
        name=data["name"],
        entity=Entity(**data["entity"]),
        source=source,
        aggregations=tuple(aggregations),
        windows=tuple(timedelta(microseconds=w) for w in data["windows_us"]),
        delay=timedelta(microseconds=data["delay_us"]),
        lateness=timedelta(microseconds=data["lateness_us"]),
        storage=data["storage"],
    )
