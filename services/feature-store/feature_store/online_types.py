"""What goes into and comes out of a read of online features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Outcome(IntEnum):
    """What the ledger and the clock say of a request. Only NEW (and a taken-over one, also NEW) wrote anything."""

    NEW = 0
    REPEATED = 1
    PENDING = 2
    CONFLICT = 3
    LATE = 4
    FUTURE = 5


@dataclass(frozen=True, slots=True)
class FeatureRequest:
    """An event whose features are wanted. `keys`: entity name -> key; `fingerprint`: 16 bytes of the payload."""

    event_id: str
    time_us: int
    keys: Mapping[str, str]
    fields: Mapping[str, int]
    fingerprint: bytes


class ViewRead(NamedTuple):
    """What a view's features were made of. `known`: the entity has history besides this event.

    A tuple, as two are made for every request.
    """

    view: str
    entity: str
    key: str
    version: str
    topic: str
    topic_id: str
    shard: int
    offset: int
    tail_ids: tuple[int, ...]
    known: bool
    lost: bool


@dataclass(frozen=True, slots=True)
class BatchRead:
    """One row per request. `vectors` float32[n, features], zeros where the outcome is not NEW.

    `feature_usable` bool[n, features]: false for the features of a view whose shard has no state (lost, not built) or
    whose entity's state is damaged (`damaged` says what); `usable` bool[n]: all of them. `lag_ms`: how far the worst
    shard's progress trails the wall clock.
    """

    outcomes: list[Outcome]
    replies: list[bytes | None]
    vectors: NDArray[np.float32]
    feature_usable: NDArray[np.bool_]
    usable: NDArray[np.bool_]
    inputs: list[list[ViewRead]]
    lag_ms: NDArray[np.int64]
    clock_us: list[int]
    damaged: list[str]


@dataclass(frozen=True, slots=True)
class EntityRead:
    """One entity's features of one view, as of a time. `lost`: its shard has no state; the values mean nothing."""

    key: str
    features: dict[str, float]
    known: bool
    lost: bool
    lag_ms: int
