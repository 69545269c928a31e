"""Lateness and steps: the vectorised judge equals a loop over the log, however the log is cut into batches."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from feature_store.admission import FUTURE, LATE, OK, UNSET_CLOCK, judge
from hypothesis import given
from hypothesis import strategies as st

LATENESS, STEP = 10, 30


def loop(times: list[int], clock: int | None, lateness: int, step: int) -> tuple[list[int], int | None]:
    """Event by event, from the sentences of the contract."""
    verdicts = []
    for t in times:
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
    times=st.lists(st.one_of(st.integers(0, 60), st.integers(0, 400)), max_size=60),
    clock=st.one_of(st.none(), st.integers(0, 100)),
    cuts=st.lists(st.integers(0, 60), max_size=6),
    lateness=st.integers(0, 20),
    step=st.integers(0, 40),
)
def test_equals_the_loop_for_any_cut(
    times: list[int], clock: int | None, cuts: list[int], lateness: int, step: int
) -> None:
    expected, clock_after = loop(times, clock, lateness, step)
    now = UNSET_CLOCK if clock is None else clock
    got: list[int] = []
    edges = [0, *sorted(min(c, len(times)) for c in cuts), len(times)]
    for a, b in pairwise(edges):
        verdicts, now = judge(np.array(times[a:b], dtype=np.int64), now, lateness, step)
        assert verdicts.dtype == np.int8
        got += verdicts.tolist()
    assert got == expected
    assert now == (UNSET_CLOCK if clock_after is None else clock_after)


def test_borders_belong_inside() -> None:
    verdicts, clock = judge(np.array([100 - LATENESS, 100 - LATENESS - 1, 100 + STEP, 131]), 100, LATENESS, STEP)
    assert verdicts.tolist() == [OK, LATE, OK, OK]
    assert clock == 131
    verdicts, clock = judge(np.array([100 + STEP + 1]), 100, LATENESS, STEP)
    assert verdicts.tolist() == [FUTURE]
    assert clock == 100 + STEP


def test_no_single_event_moves_the_clock_by_more_than_a_step() -> None:
    far = np.array([10**15, 101, 10**15, 135])
    verdicts, clock = judge(far, 100, LATENESS, STEP)
    assert verdicts.tolist() == [FUTURE, LATE, FUTURE, LATE]  # two lies move it twice, and no further
    assert clock == 100 + 2 * STEP


def test_the_first_event_sets_the_clock_and_no_event_leaves_it_unset() -> None:
    verdicts, clock = judge(np.array([5 * 10**15]), UNSET_CLOCK, LATENESS, STEP)
    assert (verdicts.tolist(), clock) == ([OK], 5 * 10**15)
    verdicts, clock = judge(np.empty(0, dtype=np.int64), UNSET_CLOCK, LATENESS, STEP)
    assert (len(verdicts), clock) == (0, UNSET_CLOCK)
