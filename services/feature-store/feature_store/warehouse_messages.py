"""Protobuf messages as Arrow columns and back, to the bit, for any message type.

| protobuf                    | Arrow                                                                          |
|---|---|
| `int64 x_us`                | `x`, timestamp in microseconds, UTC                                            |
| other integers, bool, float | of the same width; uint32 as int64                                             |
| string, bytes               | string, binary                                                                 |
| enum                        | its value's name, or the number of a value that the contract does not know      |
| message, repeated           | struct, list                                                                   |

Fields with presence (`optional`, messages) are null where they are not set. Fields that the contract does not know are
not kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from operator import attrgetter, methodcaller
from typing import Any

import numpy as np
import pyarrow as pa
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from feature_store.source_files import TIME_TYPE

_F = FieldDescriptor
_TYPES: dict[int, pa.DataType] = {
    _F.TYPE_DOUBLE: pa.float64(),
    _F.TYPE_FLOAT: pa.float32(),
    **dict.fromkeys((_F.TYPE_INT64, _F.TYPE_SINT64, _F.TYPE_SFIXED64), pa.int64()),
    **dict.fromkeys((_F.TYPE_INT32, _F.TYPE_SINT32, _F.TYPE_SFIXED32), pa.int32()),
    **dict.fromkeys((_F.TYPE_UINT32, _F.TYPE_FIXED32), pa.int64()),
    **dict.fromkeys((_F.TYPE_UINT64, _F.TYPE_FIXED64), pa.uint64()),
    _F.TYPE_BOOL: pa.bool_(),
    _F.TYPE_STRING: pa.string(),
    _F.TYPE_BYTES: pa.binary(),
    _F.TYPE_ENUM: pa.string(),
}
_BATCH = 2_000

Json = dict[str, Any]  # a row as pyarrow gives it: values of any column type


class MessageUnsupported(ValueError):
    """A message type that has no columns; names the field."""


def schema_of(descriptor: Descriptor) -> pa.Schema:
    """The columns of a message type. Raises MessageUnsupported for one that contains itself, maps and groups."""
    return pa.schema([_field(f, ()) for f in descriptor.fields])


def optional_columns(descriptor: Descriptor) -> tuple[str, ...]:
    """Columns in which values may be missing."""
    return tuple(column_name(f) for f in descriptor.fields if f.has_presence)


def column_name(f: FieldDescriptor) -> str:
    """A time's column is named without `_us`."""
    return str(f.name).removesuffix("_us") if _is_time(f) else str(f.name)


def columns_of(messages: Sequence[Message], descriptor: Descriptor) -> pa.Table:
    """n messages of one type as a table of n rows, columns as `schema_of` says."""
    arrays = [_array(f, messages) for f in descriptor.fields]
    return pa.Table.from_arrays(arrays, schema=schema_of(descriptor))


def messages_of(table: pa.Table, descriptor: Descriptor) -> Iterator[Message]:
    """The messages that a table with (at least) these columns was made of."""
    made = GetMessageClass(descriptor)
    fill = _filler(descriptor)
    names = [column_name(f) for f in descriptor.fields]
    # As numbers: a date in Python ends in the year 9999 and costs more.
    plain = _untimed(table.select(names))
    for batch in plain.to_batches(max_chunksize=_BATCH):
        for row in batch.to_pylist():
            yield made(**fill(row))


def _is_time(f: FieldDescriptor) -> bool:
    return bool(f.type == _F.TYPE_INT64 and f.name.endswith("_us"))


def _field(f: FieldDescriptor, outer: tuple[str, ...]) -> pa.Field:
    try:
        kind = _value_type(f, outer)
    except MessageUnsupported as error:
        raise MessageUnsupported(f"{f.full_name}: {error}") from None
    if f.is_repeated:
        kind = pa.list_(pa.field("element", kind))
    return pa.field(column_name(f), kind)


def _value_type(f: FieldDescriptor, outer: tuple[str, ...]) -> pa.DataType:
    if _is_time(f):
        return TIME_TYPE
    if f.type == _F.TYPE_MESSAGE:
        inner = _message_type(f)
        if inner.full_name in outer or inner.GetOptions().map_entry or not inner.fields:
            raise MessageUnsupported(f"{inner.full_name} has no columns: a map, empty, or inside itself")
        return pa.struct([_field(g, (*outer, inner.full_name)) for g in inner.fields])
    if f.type not in _TYPES:
        raise MessageUnsupported("a group has no column")
    return _TYPES[f.type]


def _message_type(f: FieldDescriptor) -> Descriptor:
    assert f.message_type is not None, f"{f.name} is no message"
    return f.message_type


def _enum_type(f: FieldDescriptor) -> EnumDescriptor:
    assert f.enum_type is not None, f"{f.name} is no enum"
    return f.enum_type


def _array(f: FieldDescriptor, messages: Sequence[Message]) -> pa.Array:
    name = f.name
    found = list(map(attrgetter(name), messages))
    if f.is_repeated:
        offsets = np.zeros(len(found) + 1, dtype=np.int32)
        np.cumsum(np.fromiter(map(len, found), dtype=np.int64, count=len(found)), out=offsets[1:])
        return pa.ListArray.from_arrays(
            pa.array(offsets), _values(f, list(chain.from_iterable(found))), type=_field(f, ()).type
        )
    if not f.has_presence:
        return _values(f, found)
    there = np.fromiter(map(methodcaller("HasField", name), messages), dtype=np.bool_, count=len(messages))
    return _values(f, found, None if there.all() else ~there)


def _values(f: FieldDescriptor, values: Sequence[Any], missing: np.ndarray | None = None) -> pa.Array:
    kind = _value_type(f, ())
    if f.type == _F.TYPE_MESSAGE:
        arrays = [_array(g, values) for g in _message_type(f).fields]
        fields = list(kind)
        mask = None if missing is None else pa.array(missing)
        return pa.StructArray.from_arrays(arrays, fields=fields, mask=mask)
    if f.type == _F.TYPE_ENUM:
        values = list(map(_NameOf(_enum_type(f)).__getitem__, values))
    if f.type == _F.TYPE_FLOAT:
        # Through numpy: float32 stays what it is, and Arrow need not look at every number.
        return pa.array(np.array(values, dtype=np.float32), kind, mask=missing)
    return pa.array(values, kind) if missing is None else pa.array(values, kind, mask=missing)


class _NameOf(dict[int, str]):
    def __init__(self, enum: EnumDescriptor) -> None:
        super().__init__({number: value.name for number, value in enum.values_by_number.items()})

    def __missing__(self, number: int) -> str:
        return str(number)


def _untimed(table: pa.Table) -> pa.Table:
    schema = pa.schema([pa.field(f.name, _untimed_type(f.type)) for f in table.schema])
    return table.cast(schema)


def _untimed_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_timestamp(kind):
        return pa.int64()
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(f.name, _untimed_type(f.type)) for f in kind])
    if pa.types.is_list(kind):
        return pa.list_(pa.field(kind.value_field.name, _untimed_type(kind.value_type)))
    return kind


def _filler(descriptor: Descriptor) -> Callable[[Json], Json]:
    """What turns a row into the keyword arguments of a message."""
    plain = [(column_name(f), f.name) for f in descriptor.fields if f.type not in (_F.TYPE_MESSAGE, _F.TYPE_ENUM)]
    enums = [(f.name, f.is_repeated, _enum_type(f).values_by_name) for f in descriptor.fields if f.type == _F.TYPE_ENUM]
    inner = [(f.name, f.is_repeated, _filler(_message_type(f))) for f in descriptor.fields if f.type == _F.TYPE_MESSAGE]

    def fill(row: Json) -> Json:
        out = {field: row[column] for column, field in plain}
        for name, many, known in enums:
            texts = (row[name] or []) if many else [row[name]]
            numbers = [known[t].number if t in known else t and int(t) for t in texts]
            out[name] = numbers if many else numbers[0]
        for name, many, filled in inner:
            value = row[name]
            if many:
                out[name] = [filled(v) for v in value or ()]
            else:
                out[name] = None if value is None else filled(value)
        return out

    return fill
