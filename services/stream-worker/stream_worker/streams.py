"""What a feature plan asks of Kafka: which messages lie on which topic, and whose state they feed.

A message that cannot be used is dead-lettered once, by one stage: by the state stage where an entity is keyed by the
topic's own key (its position is in Redis), by the re-key stage elsewhere (inside its Kafka transaction).
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass

from feature_store.definitions import FeaturePlan, LabelSource, Source
from feature_store.validation import rule_of
from google.protobuf.descriptor import Descriptor
from google.protobuf.descriptor_pool import Default as default_pool

from stream_worker.wire import LayoutError, MessageLayout


class PlanUnsupported(Exception):
    """A feature plan that this worker cannot run; says what and why."""


@dataclass(frozen=True, slots=True)
class Stream:
    """Messages of one type on one topic. `known_at` and `value` are set where they are labels."""

    name: str
    topic: str
    layout: MessageLayout
    key: str
    id: str
    time: str
    fields: tuple[str, ...]
    known_at: str | None = None
    value: str | None = None

    @property
    def is_label(self) -> bool:
        return self.known_at is not None

    def needs(self, field: str) -> bool:
        """A message without this optional field cannot be used: it has a rule, or features are made of it."""
        return rule_of(field) is not None or field in (*self.fields, self.value)

    def key_of(self, entity_key: str) -> str:
        """The field with an entity's key. Raises PlanUnsupported."""
        if all(f.name != entity_key for f in self.layout.fields):
            raise PlanUnsupported(
                f"{self.name}: {self.layout.message.DESCRIPTOR.full_name} has no field {entity_key!r},"
                " which a view's entity is keyed by"
            )
        return entity_key


@dataclass(frozen=True, slots=True)
class Target:
    """An entity fed by re-keyed rows: its key field, the topic they go to, and the fields each source sends along."""

    entity: str
    key: str
    topic: str
    fields: dict[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class PlanStreams:
    """`direct`: source topic → the entity keyed by it. `derived`: re-keyed topic → its target."""

    plan: FeaturePlan
    sources: dict[str, Stream]
    direct: dict[str, str]
    derived: dict[str, Target]

    @property
    def state_topics(self) -> dict[str, str]:
        """Every topic the state stage reads → the entity it feeds."""
        return {**self.direct, **{topic: t.entity for topic, t in self.derived.items()}}

    @property
    def rekeyed(self) -> dict[str, Stream]:
        """Source topics the re-key stage reads."""
        names = {name for target in self.derived.values() for name in target.fields}
        return {topic: stream for topic, stream in self.sources.items() if stream.name in names}

    def lettered_by_rekey(self, topic: str) -> bool:
        return topic not in self.direct

    @classmethod
    def of(cls, plan: FeaturePlan) -> PlanStreams:
        """Raises PlanUnsupported for two entities or two message types on one topic, or a message that is not flat."""
        sources: dict[str, Stream] = {}
        direct: dict[str, str] = {}
        derived: dict[str, Target] = {}
        read: list[Source | LabelSource] = [plan.source, *plan.label_sources]
        for source in read:
            if source.topic in sources:
                raise PlanUnsupported(f"topic {source.topic} has messages of {source.name} and of another source")
            sources[source.topic] = _stream(source)
        for entity in plan.entities:
            topic = plan.topic_of(entity.name)
            if topic in direct or topic in derived:
                raise PlanUnsupported(f"topic {topic} would feed two entities; a topic feeds one")
            if topic in sources:
                direct[topic] = entity.name
                continue
            fields: dict[str, set[str]] = {}
            for view in plan.views_of(entity.name):
                fields.setdefault(view.source.name, set()).update(view.columns)
                if view.label is not None:
                    fields.setdefault(view.label.name, set()).add("value")
            for stream in sources.values():
                if stream.name in fields:
                    stream.key_of(entity.key)
            packed = {name: tuple(sorted(columns)) for name, columns in fields.items()}
            derived[topic] = Target(entity.name, entity.key, topic, packed)
        for view in plan.views:
            if view.label is not None and not view.rekeyed:
                raise PlanUnsupported(f"view {view.name}: labels of a view keyed by its source's own key")
        return cls(plan, sources, direct, derived)


def _stream(source: Source | LabelSource) -> Stream:
    try:
        layout = MessageLayout.of(message_descriptor(source.message))
    except LayoutError as error:
        raise PlanUnsupported(f"source {source.name}: {error}") from error
    known_at: str | None = None
    value: str | None = None
    fields: tuple[str, ...] = source.fields if isinstance(source, Source) else ("value",)
    if isinstance(source, LabelSource):
        known_at, value = source.known_at, source.value
        needed = [source.key, source.id, source.time, known_at, value]
    else:
        needed = [source.key, source.id, source.time, *fields]
    there = {f.name for f in layout.fields}
    missing = [name for name in needed if name not in there]
    if missing:
        raise PlanUnsupported(f"source {source.name}: {source.message} has no field {', '.join(missing)}")
    return Stream(source.name, source.topic, layout, source.key, source.id, source.time, tuple(fields), known_at, value)


def message_descriptor(message: str) -> Descriptor:
    """The descriptor of `package.v1.Name`, whose generated code is `package/v1/<package>_pb2.py`. Raises
    PlanUnsupported."""
    package = message.rsplit(".", 1)[0]
    try:
        importlib.import_module(f"{package}.{package.split('.')[-2]}_pb2")
        return default_pool().FindMessageTypeByName(message)
    except (ImportError, IndexError, KeyError) as error:
        raise PlanUnsupported(f"message {message!r}: no generated code for it is installed") from error
