"""Lateness and steps: the vectorised judge equals a loop over the log, however the log is cut into batches."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from feature_store.admission import FUTURE, LATE, OK, RECORDED_UNKNOWN, UNSET_CLOCK, judge
from hypothesis import given
from hypothesis import strategies as st

LATENESS, STEP = 10, 30


Pairs = list[tuple[int, int]]
"""(event time, when it was recorded)"""


def loop(events: Pairs, clock: int | None, lateness: int, step: int) -> tuple[list[int], int | None]:
    """Event by event, from the sentences of the contract."""
    verdicts = []
    for t, recorded in events:
        if t > recorded + step:
            verdicts.append(FUTURE)
            continue
        if clock is None:
            clock = t
        if t > clock + step:
            verdicts.append(FUTURE)
            clock = clock + step
        elif t < clock - lateness:
            verdicts.append(LATE)
        else:
            verdicts.append(OK)
            clock = max(clock, t)
    return verdicts, clock


@given(
    events=st.lists(
        st.tuples(
            st.one_of(st.integers(0, 60), st.integers(0, 400)),
            st.one_of(st.just(RECORDED_UNKNOWN), st.integers(0, 400)),
        ),
        max_size=60,
    ),
    clock=st.one_of(st.none(), st.integers(0, 100)),
    cuts=st.lists(st.integers(0, 60), max_size=6),
    lateness=st.integers(0, 20),
    step=st.integers(0, 40),
)
def test_equals_the_loop_for_any_cut(
    events: Pairs, clock: int | None, cuts: list[int], lateness: int, step: int
) -> None:
    expected, clock_after = loop(events, clock, lateness, step)
    now = UNSET_CLOCK if clock is None else clock
    got: list[int] = []
    edges = [0, *sorted(min(c, len(events)) for c in cuts), len(events)]
    for a, b in pairwise(edges):
        times, recorded = np.array(events[a:b], dtype=np.int64).reshape(-1, 2).T
        verdicts, now = judge(times, recorded, now, lateness, step)
        assert verdicts.dtype == np.int8
        got += verdicts.tolist()
    assert got == expected
    assert now == (UNSET_CLOCK if clock_after is None else clock_after)


def long_after(times: np.ndarray) -> np.ndarray:
    """Old data, recorded now."""
    return times + 10**12


def test_borders_belong_inside() -> None:
    times = np.array([100 - LATENESS, 100 - LATENESS - 1, 100 + STEP, 131])
    verdicts, clock = judge(times, long_after(times), 100, LATENESS, STEP)
    assert verdicts.tolist() == [OK, LATE, OK, OK]
    assert clock == 131
    times = np.array([100 + STEP + 1])
    verdicts, clock = judge(times, long_after(times), 100, LATENESS, STEP)
    assert verdicts.tolist() == [FUTURE]
    assert clock == 100 + STEP
    verdicts, clock = judge(np.array([50 + STEP, 51 + STEP]), np.array([50, 50]), UNSET_CLOCK, LATENESS, STEP)
    assert (verdicts.tolist(), clock) == ([OK, FUTURE], 50 + STEP)


def test_no_single_event_moves_the_clock_by_more_than_a_step() -> None:
    far = np.array([10**15, 101, 10**15, 135])
    verdicts, clock = judge(far, long_after(far), 100, LATENESS, STEP)
    assert verdicts.tolist() == [FUTURE, LATE, FUTURE, LATE]  # two lies move it twice, and no further
    assert clock == 100 + 2 * STEP


def test_the_first_event_sets_the_clock_and_no_event_leaves_it_unset() -> None:
    first, none = np.array([5 * 10**15]), np.empty(0, dtype=np.int64)
    verdicts, clock = judge(first, first, UNSET_CLOCK, LATENESS, STEP)
    assert (verdicts.tolist(), clock) == ([OK], 5 * 10**15)
    verdicts, clock = judge(none, none, UNSET_CLOCK, LATENESS, STEP)
    assert (len(verdicts), clock) == (0, UNSET_CLOCK)


def test_a_date_far_past_its_record_moves_no_clock_set_or_unset() -> None:
    times, recorded = np.array([10**15, 101]), np.array([100, 100])
    for before in (UNSET_CLOCK, 100):
        verdicts, clock = judge(times, recorded, before, LATENESS, STEP)
        assert (verdicts.tolist(), clock) == ([FUTURE, OK], 101)
