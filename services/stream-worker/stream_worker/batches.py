"""A micro-batch of messages → one ShardUpdate for each shard it touches, and its dead letters. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from feature_store.definitions import FeaturePlan
from feature_store.updates import EventColumns, ShardUpdate

from stream_worker import entity_batch
from stream_worker.dead_letters import Letter, letters_of
from stream_worker.entity_batch import BatchMalformed, Part
from stream_worker.intake import Messages, refused_ids, runs, take_in
from stream_worker.shards import Shard
from stream_worker.streams import Stream, Target


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Updates of one topic's shards; `parts`: by shard, what its updates hold with where each row came from."""

    topic: str
    updates: list[ShardUpdate]
    letters: list[Letter]
    parts: Mapping[int, Sequence[Part]]
    messages: Messages | None
    rows: int

    def conflict_letters(self, conflicts: Mapping[int, Sequence[tuple[int, int]]]) -> list[Letter]:
        """Letters for (part, row) by shard whose id is known with another content."""
        out = []
        for shard, places in conflicts.items():
            for part_index, row in places:
                part = self.parts[shard][part_index]
                out.append(self._conflict(part, row))
        return out

    def _conflict(self, part: Part, row: int) -> Letter:
        partition, offset = int(part.origin_partition[row]), int(part.origin_offset[row])
        key, value = b"", b""
        if self.messages is not None and part.origin_topic == self.messages.topic:
            at = np.flatnonzero((self.messages.partition == partition) & (self.messages.offset == offset))
            if len(at):
                key, value = self.messages.keys[int(at[0])] or b"", self.messages.values[int(at[0])] or b""
        entity_key = part.columns.keys[int(part.columns.key_index[row])]
        detail = (
            f"an event with this id (id64 {int(part.columns.id[row])}) is known of {entity_key!r} with other content;"
            " the first one counts"
        )
        return Letter(part.origin_topic, partition, offset, "id_conflict", "", detail, key, value)


def direct_batch(
    messages: Messages, stream: Stream, shards: Mapping[int, Shard], count: int, plan: FeaturePlan
) -> MicroBatch:
    """Messages of a source topic whose key is the entity's; `shards` by partition, `count` of all shards."""
    clocks = {p: s.clock_us for p, s in shards.items()}
    rows, refused = take_in(messages, stream, [stream.key], clocks, count, plan.lateness_us, plan.max_step_us)
    forget = refused_ids(messages, stream, refused) if refused else {}
    coded = rows.keys[stream.key]
    # A key lies in one partition, so the distinct keys sorted by partition are each shard's own list.
    home = np.full(len(coded.values), -1, dtype=np.int64)
    home[coded.index] = rows.partition
    order = np.argsort(home, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    key_index = rank[coded.index]
    keys_of, rows_of = runs(home[order]), runs(rows.partition)
    updates, parts = [], {}
    for p, last in _last_offsets(messages).items():
        own: list[Part] = []
        if p in rows_of:
            (a, b), (first, end) = rows_of[p], keys_of[p]
            columns = EventColumns(
                stream.name,
                [coded.values[i] for i in order[first:end].tolist()],
                key_index[a:b] - first,
                rows.time_us[a:b],
                rows.id[a:b],
                {name: values[a:b] for name, values in rows.fields.items()},
            )
            own = [Part(columns, messages.topic, rows.partition[a:b], messages.offset[rows.row[a:b]])]
        parts[p] = own
        updates.append(
            ShardUpdate(
                p,
                shards[p].offset,
                last + 1,
                clocks.get(p, shards[p].clock_us),
                max(shards[p].progress_us, messages.last_us[p]),
                [part.columns for part in own],
                forget.get(p, ()),
            )
        )
    return MicroBatch(messages.topic, updates, letters_of(messages, refused), parts, messages, len(rows.row))


def derived_batches(
    messages: Messages, target: Target, shard_of: Callable[[int], Shard | None], count: int, max_rows: int
) -> Iterator[MicroBatch]:
    """Messages of a re-keyed topic, cut into micro-batches of about `max_rows` rows.

    Each is to be applied before the next is asked for: `shard_of` a partition tells where it is then, or that it is
    not ours (any more) and its messages are another's.
    """
    pending: dict[int, list[Part]] = {}
    last: dict[int, int] = {}
    letters: list[Letter] = []
    rows = 0
    for i, p in enumerate(messages.partition.tolist()):
        if shard_of(p) is None:
            continue
        found = pending.setdefault(p, [])
        last[p] = int(messages.offset[i])
        try:
            for part in entity_batch.decode(messages.values[i], target, p, count):
                found.append(part)
                rows += len(part.columns.id)
        except BatchMalformed as error:
            value, key = messages.values[i] or b"", messages.keys[i] or b""
            letters.append(Letter(messages.topic, p, last[p], "malformed", "", str(error), key, value))
        if rows >= max_rows:
            yield _derived(messages.topic, pending, last, letters, shard_of, rows)
            pending, last, letters, rows = {}, {}, [], 0
    if last:
        yield _derived(messages.topic, pending, last, letters, shard_of, rows)


def _derived(
    topic: str,
    pending: Mapping[int, Sequence[Part]],
    last: Mapping[int, int],
    letters: list[Letter],
    shard_of: Callable[[int], Shard | None],
    rows: int,
) -> MicroBatch:
    updates, parts = [], {}
    for p, offset in last.items():
        shard = shard_of(p)
        if shard is None:
            continue
        own = entity_batch.joined(pending[p])
        parts[p] = own
        # The source's own clock judged these rows already; this one only tells how far the shard is.
        newest = [int(part.columns.time_us.max()) for part in own if part.columns.known_at_us is None]
        columns = [part.columns for part in own]
        clock = max([shard.clock_us, *newest])
        updates.append(ShardUpdate(p, shard.offset, offset + 1, clock, shard.progress_us, columns))
    return MicroBatch(topic, updates, letters, parts, None, rows)


def _last_offsets(messages: Messages) -> dict[int, int]:
    return dict(zip(messages.partition.tolist(), messages.offset.tolist(), strict=True))
