"""Messages of a re-keyed topic, from wherever they are kept, as the rows that were absorbed from them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from batch_scorer.archive import EntityTopic, LogExtent, LoggedRows
from feature_store.history import EntityKeys
from feature_store.kernel import Int64s
from stream_worker import entity_batch
from stream_worker.entity_batch import Part
from stream_worker.streams import Target


def entity_topic(target: Target, extent: LogExtent, messages: Iterable[tuple[int, int, bytes | None]]) -> EntityTopic:
    """`messages`: partition, offset and value of each."""
    parts: dict[str, list[tuple[int, Part]]] = {}
    for partition, offset, value in messages:
        try:
            found = entity_batch.decode(value, target, partition, extent.shards)
        except entity_batch.BatchMalformed:
            continue  # the worker refused it too
        for part in found:
            parts.setdefault(part.columns.source, []).append((offset, part))
    return EntityTopic(extent, {source: _rows(of) for source, of in parts.items()})


def _rows(parts: list[tuple[int, Part]]) -> LoggedRows:
    """All parts of one source as columns, each row with the offset of its message."""
    keys: dict[str, int] = {}
    codes: list[Int64s] = []
    for _, part in parts:
        names = part.columns.keys
        lookup = np.fromiter((keys.setdefault(k, len(keys)) for k in names), np.int64, len(names))
        codes.append(lookup[part.columns.key_index])
    columns = [part.columns for _, part in parts]
    known = [c.known_at_us for c in columns if c.known_at_us is not None]
    return LoggedRows(
        keys=EntityKeys(np.concatenate(codes), list(keys)),
        offset=np.repeat(np.array([offset for offset, _ in parts], dtype=np.int64), [len(c.id) for c in columns]),
        time_us=np.concatenate([c.time_us for c in columns]),
        id=np.concatenate([c.id for c in columns]),
        fields={name: np.concatenate([c.fields[name] for c in columns]) for name in columns[0].fields},
        known_at_us=np.concatenate(known) if known else None,
    )
