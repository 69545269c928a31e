"""Merging events into state: a set, whatever the order, the batches and the repeats; equal sets are equal bytes."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta

import numpy as np
import pytest
from feature_store import state as state_module
from feature_store.codec import StateCodec
from feature_store.definitions import Count, FeatureView, Mean, Share
from feature_store.kernel import Labels, Points
from feature_store.state import Merged, NewEvents, merge, union
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.test_kernel import DISPUTES, ENTITY, SOURCE, WIDE_GROUPS, YEAR_2000, YEAR_2100

SECOND = 1_000_000
# Retention 10 + 5 + 5 seconds.
VIEW = FeatureView(
    "v", ENTITY, SOURCE, (Count(), Mean("amount"), Share(DISPUTES, "bad")),
    (timedelta(seconds=10), timedelta(seconds=3)), timedelta(seconds=5), timedelta(seconds=5),
)  # fmt: skip
RETENTION = 20 * SECOND
CODEC = StateCodec(VIEW)
GROUPS = 3

EventRow = tuple[int, int, int, int]  # group, time, id, amount
LabelRow = tuple[int, int, int, int, int]  # group, event's time, id, known at, value


@dataclass
class Dicts:
    """The state as dictionaries, and what adding one event or label after the other makes of it."""

    events: dict[int, dict[int, tuple[int, int]]] = field(default_factory=dict)
    labels: set[LabelRow] = field(default_factory=set)

    def add(self, row: EventRow) -> str:
        group, time_us, id_, amount = row
        own = self.events.setdefault(group, {})
        if id_ in own:
            return "duplicate" if own[id_] == (time_us, amount) else "conflict"
        own[id_] = (time_us, amount)
        self.forget(group)
        return "new"

    def say(self, row: LabelRow) -> None:
        self.labels.add(row)
        self.forget(row[0])

    def forget(self, group: int) -> None:
        own = self.events.get(group, {})
        if own:
            oldest = max(t for t, _ in own.values()) - RETENTION
            self.events[group] = {i: (t, a) for i, (t, a) in own.items() if t > oldest}
            self.labels = {row for row in self.labels if row[0] != group or row[1] > oldest}

    def points(self) -> Points:
        events = sorted((g, t, i, a) for g, own in self.events.items() for i, (t, a) in own.items())
        table = np.array(events, dtype=np.int64).reshape(-1, 4)
        return Points(table[:, 0], table[:, 1], table[:, 2], {"amount": table[:, 3]}, labels_of(sorted(self.labels)))

    def encoded(self, groups: int = GROUPS) -> list[bytes]:
        return CODEC.encode(self.points(), groups)


def events_of(rows: Sequence[EventRow]) -> NewEvents:
    table = np.array(rows, dtype=np.int64).reshape(-1, 4)
    return NewEvents(table[:, 0], table[:, 1], table[:, 2], {"amount": table[:, 3]})


def labels_of(rows: Sequence[LabelRow]) -> Labels:
    """Sorted rows come in the order that encode wants: (group, time, id, known, value)."""
    group, time_us, id_, known, value = np.array(rows, dtype=np.int64).reshape(-1, 5).T
    return Labels(group, id_, time_us, known, value)


NOTHING = CODEC.decode([None] * GROUPS)
TIMES = st.builds(lambda s, d: (100 + s) * SECOND + d, st.integers(0, 45), st.sampled_from([0, 0, 0, 1]))


@st.composite
def logs(draw: st.DrawFn, conflicts: bool = False) -> list[EventRow | LabelRow]:
    """Events and labels in log order, with repeats; `conflicts`: ids also come back with another content."""
    log: list[EventRow | LabelRow] = []
    ids = draw(st.lists(st.tuples(st.integers(0, GROUPS - 1), st.integers(0, 40)), max_size=30, unique=True))
    for group, id_ in ids:
        log.append((group, draw(TIMES), id_, draw(st.integers(1, 5))))
        for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
            log.append(
                (group, log[-1][1] if len(log[-1]) == 4 else draw(TIMES), id_, draw(TIMES), draw(st.integers(0, 1)))
            )
    if conflicts and ids:
        for _ in range(draw(st.integers(1, 8))):
            group, id_ = draw(st.sampled_from(ids))
            log.append((group, draw(TIMES), id_, draw(st.integers(1, 5))))
    if log:
        log += draw(st.lists(st.sampled_from(log), max_size=10))
    return draw(st.permutations(log))


def absorbed(
    log: Sequence[EventRow | LabelRow], cuts: Sequence[int]
) -> tuple[list[bytes], list[EventRow], list[EventRow]]:
    """Bytes after merging the log in batches, and the events called duplicates and conflicts, in order."""
    blobs: list[bytes | None] = [None] * GROUPS
    duplicates: list[EventRow] = []
    conflicts: list[EventRow] = []
    for a, b in itertools.pairwise([0, *sorted(min(c, len(log)) for c in cuts), len(log)]):
        events = [row for row in log[a:b] if len(row) == 4]
        labels = [row for row in log[a:b] if len(row) == 5]
        result = merge(
            VIEW, CODEC.decode(blobs), events_of(events) if events else None, labels_of(labels) if labels else None
        )
        blobs = list(CODEC.encode(result.points, GROUPS))
        duplicates += [events[i] for i in result.duplicates.tolist()]
        conflicts += [events[i] for i in result.conflicts.tolist()]
    return [blob or b"" for blob in blobs], duplicates, conflicts


CUTS = st.lists(st.integers(0, 60), max_size=5)


@settings(max_examples=100)
@given(logs(), CUTS, st.randoms(use_true_random=False))
def test_the_bytes_depend_on_the_set_alone(log: list[EventRow | LabelRow], cuts: list[int], random: object) -> None:
    oracle = Dicts()
    for row in log:
        if len(row) == 4:
            oracle.add(row)
        else:
            oracle.say(row)
    assert absorbed(log, cuts)[0] == oracle.encoded()
    assert absorbed(sorted(set(log)), [])[0] == oracle.encoded()
    assert absorbed(sorted(log, reverse=True), cuts)[0] == oracle.encoded()


@settings(max_examples=100)
@given(logs(conflicts=True), st.one_of(CUTS, st.just(list(range(60)))))
def test_with_conflicts_equals_one_event_after_the_other(log: list[EventRow | LabelRow], cuts: list[int]) -> None:
    oracle = Dicts()
    conflicts = []
    for row in log:
        if len(row) == 5:
            oracle.say(row)
        elif oracle.add(row) == "conflict":
            conflicts.append(row)
    for few_pairs in (0, 1 << 20):  # known ids by bitmap, and pair by pair
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(state_module, "_FEW_PAIRS", few_pairs)
            for some in (cuts, []):
                blobs, _, found = absorbed(log, some)
                assert blobs == oracle.encoded()
                assert found == conflicts


def one_go(rows: Sequence[EventRow], old: Points = NOTHING) -> Merged:
    return merge(VIEW, old, events_of(rows), None)


def test_duplicates_and_conflicts_are_told_apart_and_change_nothing() -> None:
    t = 100 * SECOND
    first = one_go([(0, t, 1, 5), (1, t, 1, 9)])
    rows = [(0, t, 1, 5), (0, t, 1, 6), (0, t + 1, 1, 5), (1, t, 1, 9), (2, t, 1, 5), (2, t, 1, 5), (2, t, 1, 6)]
    again = one_go(rows, first.points)
    assert again.duplicates.tolist() == [0, 3, 5]
    assert again.conflicts.tolist() == [1, 2, 6]
    assert CODEC.encode(again.points, 3) == CODEC.encode(one_go([(0, t, 1, 5), (1, t, 1, 9), (2, t, 1, 5)]).points, 3)


def test_retention_is_counted_from_the_entitys_own_newest_event() -> None:
    t = 100 * SECOND
    rows = [(0, t, 1, 1), (0, t + RETENTION, 2, 1), (0, t + 1, 3, 1), (1, t, 4, 1), (1, t + RETENTION - 1, 5, 1)]
    kept = one_go(rows).points
    assert list(zip(kept.group.tolist(), kept.id.tolist(), strict=True)) == [(0, 3), (0, 2), (1, 4), (1, 5)]
    # What is past retention when it comes leaves no trace.
    assert one_go([(0, t, 9, 1)], kept).points.id.tolist() == kept.id.tolist()


def test_a_conflict_with_what_is_long_dropped_is_none() -> None:
    """An id may come back once its first event is past retention, also where all comes in one batch."""
    t = 100 * SECOND
    rows = [(0, t, 1, 1), (0, t + RETENTION, 2, 1), (0, t + RETENTION, 1, 7)]
    result = one_go(rows)
    assert result.conflicts.tolist() == []
    assert result.points.id.tolist() == [1, 2]
    assert result.points.columns["amount"].tolist() == [7, 1]
    # Before that it is one.
    result = one_go([rows[0], rows[2], rows[1]])
    assert result.conflicts.tolist() == [1]
    assert result.points.id.tolist() == [2]


def test_union_drops_nothing() -> None:
    t = 100 * SECOND
    rows = [(0, t, 1, 1), (0, t + 10 * RETENTION, 2, 1)]
    assert union(VIEW, NOTHING, events_of(rows), None).points.id.tolist() == [1, 2]


def test_labels_wait_for_their_event() -> None:
    t = 100 * SECOND
    said = merge(VIEW, NOTHING, None, labels_of([(2, t, 1, t - 5, 1), (2, t, 1, t + 5, 0)]))
    assert len(said.points.id) == 0
    assert said.points.labels is not None
    assert said.points.labels.value.tolist() == [1, 0]
    there = CODEC.decode(CODEC.encode(said.points, 3))
    both = merge(VIEW, there, events_of([(2, t, 1, 4)]), None)
    other_way = merge(VIEW, one_go([(2, t, 1, 4)]).points, None, labels_of([(2, t, 1, t - 5, 1), (2, t, 1, t + 5, 0)]))
    assert CODEC.encode(both.points, 3) == CODEC.encode(other_way.points, 3)
    # And go when their event would be past retention.
    later = merge(VIEW, both.points, events_of([(2, t + RETENTION, 2, 4)]), None)
    assert later.points.labels is not None
    assert len(later.points.labels.id) == 0


def test_a_view_without_labels_takes_none() -> None:
    plain = FeatureView("p", ENTITY, SOURCE, (Count(), Mean("amount")), VIEW.windows)
    old = StateCodec(plain).decode([None])
    assert merge(plain, old, events_of([(0, 1, 1, 1)]), None).points.labels is None


@pytest.mark.parametrize("groups", [range(0, WIDE_GROUPS, 50), [0]])
def test_a_century_of_times(groups: Sequence[int]) -> None:
    """Times and entities past what one int64 can number."""
    rng = np.random.default_rng(5)
    wide = FeatureView("w", ENTITY, SOURCE, (Count(), Mean("amount")), (timedelta(days=60_000),))
    rows = [(int(rng.choice(groups)), int(rng.integers(YEAR_2000, YEAR_2100)), i, 1) for i in range(200)]
    old = StateCodec(wide).decode([None])
    for part in (rows[:70], rows[70:71], rows[71:]):
        old = merge(wide, old, events_of(part), None).points
    found = zip(old.group.tolist(), old.time_us.tolist(), old.id.tolist(), strict=True)
    assert list(found) == sorted((g, t, i) for g, t, i, _ in rows)
