"""EntityBatch messages: rows of a micro-batch re-keyed to one shard of another entity, packed as columns. No I/O."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from feature_store.sharding import shards_of
from feature_store.updates import EventColumns
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from trine.events.v1.events_pb2 import EntityBatch, EntityRows

from stream_worker.intake import Messages, Rows, runs
from stream_worker.streams import Stream, Target
from stream_worker.wire import Ints

MAX_ROWS = 8192
"""Rows of one message: below a megabyte whatever the keys are."""


class BatchMalformed(ValueError):
    """An EntityBatch that cannot be used; the message says why."""


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Rows of one source for one shard, and where each came from: partition and offset of `origin_topic`."""

    columns: EventColumns
    origin_topic: str
    origin_partition: Ints
    origin_offset: Ints


def encode(
    target: Target, taken: Sequence[tuple[Stream, Messages, Rows]], shards: int
) -> Iterator[tuple[int, bytes, int]]:
    """(shard, message, rows) for every shard of the target that the rows feed."""
    keys: dict[str, int] = {}
    coded = []
    for stream, messages, rows in taken:
        if stream.name not in target.fields or len(rows.row) == 0:
            continue
        column = rows.keys[target.key]
        lookup = np.fromiter((keys.setdefault(k, len(keys)) for k in column.values), np.int64, len(column.values))
        coded.append((stream, messages, rows, lookup[column.index]))
    names = list(keys)
    home = shards_of(names, shards)
    by_shard: dict[int, list[tuple[Stream, Messages, Rows, Ints, NDArray[np.intp]]]] = {}
    for stream, messages, rows, index in coded:
        shard = home[index].astype(np.int64)
        order = np.argsort(shard, kind="stable")
        for s, (start, end) in runs(shard[order]).items():
            for at in range(start, end, MAX_ROWS):
                chosen = order[at : min(end, at + MAX_ROWS)]
                by_shard.setdefault(s, []).append((stream, messages, rows, index, chosen))
    for s, pieces in sorted(by_shard.items()):
        message, count = EntityBatch(entity=target.entity), 0
        local: dict[int, int] = {}
        for stream, messages, rows, index, chosen in pieces:
            if count and count + len(chosen) > MAX_ROWS:
                yield s, _finished(message, names, local), count
                message, count, local = EntityBatch(entity=target.entity), 0, {}
            distinct, inverse = np.unique(index[chosen], return_inverse=True)
            lookup = np.fromiter((local.setdefault(k, len(local)) for k in distinct.tolist()), np.int64, len(distinct))
            _add_part(message, stream, messages, rows, target, chosen, lookup[inverse])
            count += len(chosen)
        yield s, _finished(message, names, local), count


def _finished(message: EntityBatch, names: Sequence[str], local: dict[int, int]) -> bytes:
    message.keys.extend([names[k] for k in local])
    return message.SerializeToString()


def _add_part(
    message: EntityBatch,
    stream: Stream,
    messages: Messages,
    rows: Rows,
    target: Target,
    chosen: NDArray[np.intp],
    key_index: Ints,
) -> None:
    origin = rows.row[chosen]
    part = message.parts.add(
        source=stream.name,
        key_index=key_index.astype("<u4").tobytes(),
        time_us=_packed(rows.time_us[chosen]),
        id=_packed(rows.id[chosen]),
        known_at_us=b"" if rows.known_at_us is None else _packed(rows.known_at_us[chosen]),
        origin_topic=messages.topic,
        origin_partition=messages.partition[origin].astype("<u4").tobytes(),
        origin_offset=_packed(messages.offset[origin]),
    )
    for name in target.fields[stream.name]:
        part.columns.add(name=name, values=_packed(rows.fields[name][chosen]))


def decode(value: bytes | None, target: Target, shard: int, shards: int) -> list[Part]:
    """The parts of one message on `shard`. Raises BatchMalformed."""
    try:
        message = EntityBatch.FromString(value or b"")
    except DecodeError as error:
        raise BatchMalformed(f"not a trine.events.v1.EntityBatch: {error}") from error
    if message.entity != target.entity:
        raise BatchMalformed(f"entity is {message.entity!r}; this topic holds {target.entity!r}")
    keys = list(message.keys)
    if len(set(keys)) != len(keys):
        raise BatchMalformed("keys must be distinct")
    if (shards_of(keys, shards) != shard).any():
        raise BatchMalformed(f"keys must all belong to partition {shard} of {shards}")
    return [_part(rows, keys, target) for rows in message.parts]


def _part(rows: EntityRows, keys: list[str], target: Target) -> Part:
    wanted = target.fields.get(rows.source)
    if wanted is None:
        raise BatchMalformed(f"source is {rows.source!r}; {target.entity} is fed by {', '.join(target.fields)}")
    n = len(rows.id) // 8
    found = {c.name: c.values for c in rows.columns}
    missing = [name for name in wanted if name not in found]
    if missing:
        raise BatchMalformed(f"{rows.source}: column {missing[0]!r} is missing; the rows were packed for another plan")
    index = _unpacked(rows.key_index, "<u4", n, "key_index")
    if n and int(index.max()) >= len(keys):
        raise BatchMalformed(f"{rows.source}: key_index {int(index.max())} is past the last of {len(keys)} keys")
    known_at = _unpacked(rows.known_at_us, "<i8", n, "known_at_us") if rows.known_at_us else None
    if (known_at is not None) != ("value" in wanted) and n:
        raise BatchMalformed(f"{rows.source}: known_at_us must be given for labels and for them alone")
    columns = EventColumns(
        rows.source,
        keys,
        index,
        _unpacked(rows.time_us, "<i8", n, "time_us"),
        _unpacked(rows.id, "<i8", n, "id"),
        {name: _unpacked(found[name], "<i8", n, name) for name in wanted},
        known_at,
    )
    return Part(
        columns,
        rows.origin_topic,
        _unpacked(rows.origin_partition, "<u4", n, "origin_partition"),
        _unpacked(rows.origin_offset, "<i8", n, "origin_offset"),
    )


def joined(parts: Sequence[Part]) -> list[Part]:
    """Parts of one shard with each source's rows as one, in order."""
    by_source: dict[str, list[Part]] = {}
    for part in parts:
        if len(part.columns.id):
            by_source.setdefault(part.columns.source, []).append(part)
    return [_concatenated(source, found) if len(found) > 1 else found[0] for source, found in by_source.items()]


def _concatenated(source: str, parts: Sequence[Part]) -> Part:
    keys: dict[str, int] = {}
    index = []
    for p in parts:
        names = p.columns.keys
        lookup = np.fromiter((keys.setdefault(k, len(keys)) for k in names), np.int64, len(names))
        index.append(lookup[p.columns.key_index])
    known = [p.columns.known_at_us for p in parts]
    columns = EventColumns(
        source,
        list(keys),
        np.concatenate(index),
        np.concatenate([p.columns.time_us for p in parts]),
        np.concatenate([p.columns.id for p in parts]),
        {name: np.concatenate([p.columns.fields[name] for p in parts]) for name in parts[0].columns.fields},
        np.concatenate([k for k in known if k is not None]) if known[0] is not None else None,
    )
    return Part(
        columns,
        parts[0].origin_topic,
        np.concatenate([p.origin_partition for p in parts]),
        np.concatenate([p.origin_offset for p in parts]),
    )


def _packed(values: Ints) -> bytes:
    return values.astype("<i8", copy=False).tobytes()


def _unpacked(raw: bytes, kind: str, n: int, name: str) -> Ints:
    values = np.frombuffer(raw, dtype=kind) if len(raw) % int(kind[-1]) == 0 else None
    if values is None or len(values) != n:
        raise BatchMalformed(f"{name} has {len(raw)} bytes, which is not one value for each of {n} rows")
    return values.astype(np.int64)
