"""Messages of one topic → rows as the warehouse keeps them, and the refused with the reason. No I/O.

Flat messages are taken in as the features' role does, all at once; others are parsed one by one by protobuf and made
columns field by field.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from feature_store.admission import RECORDED_UNKNOWN
from feature_store.validation import TIME, rule_of
from feature_store.warehouse_messages import column_name, columns_of
from feature_store.warehouse_rows import PLACE_FIELDS
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from numpy.typing import NDArray

from stream_worker.archive_topics import RAW_SCHEMA, RECORDED_AT, ArchivedTopic
from stream_worker.intake import Messages, Refused, sound
from stream_worker.wire import Decoded, TextColumn

Rows = NDArray[np.intp]


def archived_schema(archived: ArchivedTopic) -> pa.Schema:
    """The columns of its files: the message's, and where each row lay in the log."""
    return pa.schema([*archived.files.schema, *PLACE_FIELDS, RECORDED_AT])


def rows_of(messages: Messages, archived: ArchivedTopic, partitions: int) -> tuple[pa.Table, list[Refused]]:
    """Rows to keep, columns as `archived_schema` says, and messages that cannot be kept. `partitions`: the topic's."""
    if archived.descriptor is None:
        rows: Rows = np.arange(len(messages.values))
        columns, refused = _raw(messages), list[Refused]()
    elif archived.stream is not None:
        decoded, rows, _, refused = sound(messages, archived.stream, (), partitions)
        rows, more = _utf8_only(decoded, archived, rows)
        refused += more
        columns = _flat(decoded, archived, rows)
    else:
        columns, rows, refused = _parsed(messages, archived)
    recorded = messages.recorded_us[rows]
    places = [
        pa.array(messages.partition[rows].astype(np.int32)),
        pa.array(messages.offset[rows]),
        pa.array(recorded // 1000, mask=recorded == RECORDED_UNKNOWN).cast(RECORDED_AT.type),
    ]
    schema = archived_schema(archived)
    return pa.Table.from_arrays([*columns, *places], schema=schema), sorted(refused, key=lambda r: r.row)


def _flat(decoded: Decoded, archived: ArchivedTopic, rows: Rows) -> list[pa.Array]:
    assert archived.descriptor is not None
    out = []
    for f, field in zip(archived.descriptor.fields, archived.files.schema, strict=True):
        absent = decoded.absent[f.name][rows] if f.name in decoded.absent else None
        absent = absent if absent is not None and absent.any() else None
        if f.name in decoded.texts:
            out.append(_texts(decoded.texts[f.name].take(rows), absent))
        else:
            numbers = pa.array(decoded.integers[f.name][rows], mask=absent)
            out.append(numbers.cast(field.type))
    return out


def _texts(column: TextColumn, absent: NDArray[np.bool_] | None) -> pa.Array:
    data, offsets = column.packed()
    buffers = [None, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(data)]
    texts = pa.Array.from_buffers(pa.string(), len(column.length), buffers)
    return texts if absent is None else pc.if_else(pa.array(absent), None, texts)


def _utf8_only(decoded: Decoded, archived: ArchivedTopic, rows: Rows) -> tuple[Rows, list[Refused]]:
    """Without rows that have a text which is not UTF-8, in a field of which nothing else is asked."""
    bad: dict[int, str] = {}
    for name, column in decoded.texts.items():
        if rule_of(name) is not None:
            continue
        data, offsets = column.take(rows).packed()
        buffers = [None, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(data)]
        try:
            pa.Array.from_buffers(pa.binary(), len(rows), buffers).cast(pa.string())
        except pa.ArrowInvalid:
            for row in rows.tolist():
                try:
                    start = int(column.start[row])
                    column.data[start : start + int(column.length[row])].tobytes().decode()
                except UnicodeDecodeError:
                    bad.setdefault(row, name)
    refused = [Refused(row, "malformed", name, f"{name} is not UTF-8") for row, name in bad.items()]
    return rows[~np.isin(rows, list(bad))] if bad else rows, refused


def _raw(messages: Messages) -> list[pa.Array]:
    known = messages.recorded_us != RECORDED_UNKNOWN
    recorded = np.where(known, messages.recorded_us // 1000 * 1000, 0)
    return [
        pa.array(recorded).cast(RAW_SCHEMA.field("recorded_at").type),
        pa.array(messages.keys, pa.binary()),
        pa.array(messages.values, pa.binary()),
    ]


def _parsed(messages: Messages, archived: ArchivedTopic) -> tuple[list[pa.Array], Rows, list[Refused]]:
    assert archived.descriptor is not None
    made = GetMessageClass(archived.descriptor)
    good: list[Message] = []
    rows: list[int] = []
    refused: list[Refused] = []
    id_, time = archived.files.id_column, archived.time
    id_rule = rule_of(id_)
    for row, value in enumerate(messages.values):
        try:
            if value is None:
                raise DecodeError("the message has no value")
            message = made.FromString(value)
        except DecodeError as error:
            detail = f"not a {archived.descriptor.full_name}: {error}"
            refused.append(Refused(row, "malformed", "", detail))
            continue
        for name, rule in ((id_, id_rule), (time, TIME)):
            problem = rule.problem(getattr(message, name)) if rule is not None else None
            if problem is not None:
                refused.append(Refused(row, "invalid", name, f"{name} {problem}"))
                break
        else:
            good.append(message)
            rows.append(row)
    table = columns_of(good, archived.descriptor)
    return (
        [table.column(column_name(f)).combine_chunks() for f in archived.descriptor.fields],
        np.array(rows, dtype=np.intp),
        refused,
    )
