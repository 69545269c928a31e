"""How the work of a view is cut for Spark: buckets of entity keys, and slices of time with a halo.

A row at time q needs the events of its entity in (q - W - delay, q - delay]. Cut by keys alone, an entity with half of
all events would be one task; so the rows' time is cut into slices, and every slice gets the events that its rows can
see: those of its own span moved back by the delay, and a halo of W before them.

    rows      |---- slice 0 ----|---- slice 1 ----|
    events  |--- W ---|---- of slice 0 ----|           moved back by the delay; an event is in one or more slices
                        |--- W ---|---- of slice 1 ----|

A slice is never shorter than its halo, so that no event is sent more than twice.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from feature_store.definitions import FeatureView
from feature_store.source_files import DAY_US


@dataclass(frozen=True, slots=True)
class Slicing:
    """Rows at `first_us` + [0, slices · slice_us) microseconds; `most`: events that a group may hold at most, which is
    all that the busiest slice can see, should they be one entity's. Groups are slice · buckets + bucket."""

    first_us: int
    slice_us: int
    slices: int
    buckets: int
    most: int

    @property
    def groups(self) -> int:
        return self.slices * self.buckets


def slicing_of(
    view: FeatureView, first_us: int, last_us: int, day_us: NDArray[np.int64], events: NDArray[np.int64],
    group_rows: int, cores: int,
) -> Slicing:  # fmt: skip
    """For rows at times first_us to last_us, over events as many as `events` on the days that begin at `day_us`.

    Slices long enough to be few, short enough to keep a group at `group_rows` events whatever the keys, or else as
    long as the halo; then as many buckets as bring a group of average keys down to a quarter of that, and give every
    core some.
    """
    span, halo = last_us - first_us + 1, max(view.windows_us)
    seen = _most_seen(view, first_us, last_us, span, day_us, events)
    slices = 1
    while seen > group_rows and slices < span // halo:
        slices = min(2 * slices, span // halo)
        seen = _most_seen(view, first_us, last_us, -(-span // slices), day_us, events)
    buckets = max(1, -(-seen * 4 // group_rows), -(-2 * cores // slices))
    return Slicing(first_us, -(-span // slices), slices, buckets, seen)


def _most_seen(
    view: FeatureView, first_us: int, last_us: int, slice_us: int, day_us: NDArray[np.int64], events: NDArray[np.int64]
) -> int:
    """Events on the days that one slice's rows see, of the slice that sees most."""
    begin = np.arange(first_us, last_us + 1, slice_us, dtype=np.int64)
    before = np.concatenate(([0], np.cumsum(events)))
    low = np.searchsorted(day_us + DAY_US, begin - view.delay_us - max(view.windows_us), side="right")
    high = np.searchsorted(day_us, np.minimum(begin + slice_us - 1, last_us) - view.delay_us, side="right")
    return int((before[np.maximum(high, low)] - before[low]).max()) if len(events) else 0
