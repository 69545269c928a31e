"""What goes into and comes out of a write of feature state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from feature_store.kernel import Int64s

Status = Literal["ok", "fenced", "moved", "superseded"]


@dataclass(frozen=True, slots=True)
class EventColumns:
    """Events (or labels, where `known_at_us` is given and `fields` holds `value`) of one source, in log order.

    `keys`: distinct entity keys; `key_index`, `time_us`, `id` and every field: int64[n] (`key_index` any integer type).
    """

    source: str
    keys: Sequence[str]
    key_index: Any
    time_us: Int64s
    id: Int64s
    fields: Mapping[str, Int64s] = field(default_factory=dict)
    known_at_us: Int64s | None = None


@dataclass(frozen=True, slots=True)
class ShardUpdate:
    """What one shard absorbs: the log from `expected_offset` up to, not including, `next_offset`.

    `forget`: events that will never be absorbed (dead letters), to be dropped from the tails of their entity's key.
    `progress_us`: wall time before which everything recorded is now absorbed.
    """

    shard: int
    expected_offset: int
    next_offset: int
    clock_us: int
    progress_us: int
    parts: Sequence[EventColumns] = ()
    forget: Sequence[tuple[str, int]] = ()


@dataclass(frozen=True, slots=True)
class ShardPosition:
    """Where a claimed shard's log goes on. `clock_us` is admission.UNSET_CLOCK before the first event.

    `base`: what history the state was built from before it followed the log, empty for none. `lost`: the base that it
    should have and has not: until a rebuild its features are not to be used, and readers are told.
    """

    shard: int
    epoch: int
    offset: int
    clock_us: int
    progress_us: int = 0
    base: str = ""
    lost: str = ""


@dataclass(frozen=True, slots=True)
class Applied:
    """`ok`; `fenced`: a younger writer owns the shard; `moved`: Redis is at `offset`, claim again and go on there;
    `superseded`: the writer's version is not the one to write any more.

    `conflicts`: (part, row) of events whose id is known with another content; they changed nothing.
    """

    shard: int
    status: Status
    offset: int
    conflicts: tuple[tuple[int, int], ...] = ()
    duplicates: int = 0


OnConflicts = Callable[[Mapping[int, tuple[tuple[int, int], ...]]], None]
"""Called with shard -> (part, row) of events whose id is known with another content."""


class VersionSuperseded(Exception):
    """The writer's version is not the one to write any more."""
