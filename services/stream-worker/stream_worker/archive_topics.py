"""What the role `archive` keeps of which topic: by a plan's sources, the decisions, and what else is declared.

A declared topic has a message type, or none: then its records are kept as they are, by the time of their recording.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa
from feature_store.definitions import FeaturePlan
from feature_store.source_files import TIME_TYPE, SourceFiles
from feature_store.warehouse_messages import MessageUnsupported, column_name, optional_columns, schema_of
from feature_store.warehouse_rows import OFFSET
from google.protobuf.descriptor import Descriptor
from pydantic import BaseModel, ConfigDict, Field

from stream_worker.streams import PlanStreams, PlanUnsupported, Stream, message_descriptor
from stream_worker.wire import LayoutError, MessageLayout

RECORDED_AT = pa.field("_recorded_at", pa.timestamp("ms", tz="UTC"))
"""Every archived row's third place: the record's timestamp."""
RAW_SCHEMA = pa.schema({"recorded_at": TIME_TYPE, "key": pa.binary(), "value": pa.binary()})


class TopicDeclaration(BaseModel):
    """A topic to keep, as TRINE_WORKER_ARCHIVE_TOPICS lists them (JSON)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    topic: str = Field(pattern=r"^[A-Za-z0-9._-]{1,249}$")
    #: Its folder in the warehouse.
    folder: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")
    #: Full name of its protobuf message; without one, records are kept as bytes.
    message: str = ""
    #: Fields with the event's id, its time (int64 microseconds), and the key that its partition follows from.
    id: str = ""
    time: str = ""
    key: str = ""
    #: Several events may be about one id (reports that correct each other).
    repeats_id: bool = False


DECISIONS = TopicDeclaration(
    topic="trine.decisions",
    folder="decisions",
    message="trine.events.v1.DecisionRecord",
    id="decision_id",
    time="decided_at_us",
    # Decided twice (a gateway died before it could answer) is two decisions.
    repeats_id=True,
)


SHADOW_DECISIONS = DECISIONS.model_copy(update={"topic": "trine.shadow-decisions", "folder": "shadow-decisions"})


@dataclass(frozen=True, slots=True, eq=False)
class ArchivedTopic:
    """`descriptor` is None for raw records; `stream` is set for flat messages, which are decoded all at once.

    `time`: the message's field by which a row belongs to a day. `files`: what the warehouse has of it.
    """

    topic: str
    files: SourceFiles
    descriptor: Descriptor | None
    stream: Stream | None
    time: str

    @property
    def folder(self) -> str:
        return self.files.folder


def archived_topics(plan: FeaturePlan | None, declared: Iterable[TopicDeclaration] = ()) -> list[ArchivedTopic]:
    """A plan's sources and re-keyed topics, the decisions, a shadow's apart, and those declared, which take precedence
    by topic.

    Raises PlanUnsupported for a message without generated code or columns, and for two topics in one folder.
    """
    found = {d.topic: _declared(d) for d in [DECISIONS, SHADOW_DECISIONS, *declared]}
    if plan is not None:
        streams = PlanStreams.of(plan)
        for topic, stream in streams.sources.items():
            found.setdefault(topic, _of_stream(stream))
        for topic, target in streams.derived.items():
            found.setdefault(topic, raw_topic(topic, f"by-{target.entity}"))
    folders: dict[str, str] = {}
    for topic, archived in found.items():
        if folders.setdefault(archived.folder, topic) != topic:
            raise PlanUnsupported(
                f"topics {folders[archived.folder]} and {topic} would share the folder {archived.folder}"
            )
    return list(found.values())


def raw_topic(topic: str, folder: str) -> ArchivedTopic:
    """Records as they are; a key or value may be missing."""
    files = SourceFiles(
        folder, OFFSET, "recorded_at", RAW_SCHEMA, required=False, unique_id=False, optional=("key", "value")
    )
    return ArchivedTopic(topic, files, None, None, "")


def _of_stream(stream: Stream) -> ArchivedTopic:
    descriptor = message_descriptor(str(stream.layout.message.DESCRIPTOR.full_name))
    # A label belongs to the day it became known.
    time = stream.known_at or stream.time
    files = _files(stream.name.replace("_", "-"), descriptor, stream.id, time, repeats_id=stream.is_label)
    return ArchivedTopic(stream.topic, files, descriptor, stream, time)


def _declared(declared: TopicDeclaration) -> ArchivedTopic:
    if not declared.message:
        return raw_topic(declared.topic, declared.folder)
    descriptor = message_descriptor(declared.message)
    for name, field in (("id", declared.id), ("time", declared.time), ("key", declared.key)):
        if (field or name != "key") and field not in descriptor.fields_by_name:
            raise PlanUnsupported(f"topic {declared.topic}: {name} is {field!r}, no field of {declared.message}")
    if column_name(descriptor.fields_by_name[declared.time]) == declared.time:
        raise PlanUnsupported(f"topic {declared.topic}: time {declared.time!r} must be int64 and end in _us")
    files = _files(declared.folder, descriptor, declared.id, declared.time, declared.repeats_id)
    try:
        layout = MessageLayout.of(descriptor)
    except LayoutError:
        return ArchivedTopic(declared.topic, files, descriptor, None, declared.time)
    stream = Stream(declared.folder, declared.topic, layout, declared.key, declared.id, declared.time, ())
    return ArchivedTopic(declared.topic, files, descriptor, stream, declared.time)


def _files(folder: str, descriptor: Descriptor, id_: str, time: str, repeats_id: bool) -> SourceFiles:
    try:
        schema = schema_of(descriptor)
    except MessageUnsupported as error:
        raise PlanUnsupported(str(error)) from error
    optional = tuple(c for c in optional_columns(descriptor) if c not in (id_, column_name_of(descriptor, time)))
    time_column = column_name_of(descriptor, time)
    return SourceFiles(folder, id_, time_column, schema, False, not repeats_id, optional, evolves=True)


def column_name_of(descriptor: Descriptor, field: str) -> str:
    return column_name(descriptor.fields_by_name[field])
