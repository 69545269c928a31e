"""Which events of a partition's log are too late or too far in the future, judged in log order.

The stream's own event time is the clock: replaying old data is normal. It cannot run away from the time at which events
are recorded, as the log itself says. So the verdicts depend on the log and on the clock at its start alone, never on
when or in which batches it is read: worker, re-key stage and replay agree.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

OK, LATE, FUTURE = 0, 1, 2
UNSET_CLOCK = -1
RECORDED_UNKNOWN = 1 << 61
"""For events whose log does not say when they were recorded: only the stream's own clock judges them."""


def judge(
    times_us: NDArray[np.int64], recorded_us: NDArray[np.int64], clock_us: int, lateness_us: int, max_step_us: int
) -> tuple[NDArray[np.int8], int]:
    """Verdict int8[n] for events in log order, and the clock after them.

    An event is FUTURE if its time is more than `max_step_us` past the clock before it, LATE if it is more than
    `lateness_us` behind; the clock moves to the newest time seen, by at most `max_step_us` an event.
    An event more than `max_step_us` past the time it was recorded at, int64[n], is FUTURE whatever the clock says, and
    moves nothing. `clock_us` UNSET_CLOCK: the first other event sets the clock.
    """
    sane = times_us <= recorded_us + max_step_us
    if sane.all():
        return _judge(times_us, clock_us, lateness_us, max_step_us)
    verdicts = np.full(len(times_us), FUTURE, dtype=np.int8)
    verdicts[sane], clock_us = _judge(times_us[sane], clock_us, lateness_us, max_step_us)
    return verdicts, clock_us


def _judge(
    times_us: NDArray[np.int64], clock_us: int, lateness_us: int, max_step_us: int
) -> tuple[NDArray[np.int8], int]:
    n = len(times_us)
    verdicts = np.zeros(n, dtype=np.int8)
    if n == 0:
        return verdicts, clock_us
    if clock_us == UNSET_CLOCK:
        clock_us = int(times_us[0])
    running = np.maximum.accumulate(np.concatenate(([clock_us], times_us)))
    jumps = np.flatnonzero(times_us > running[:-1] + max_step_us)
    if len(jumps) == 0:
        verdicts[times_us < running[:-1] - lateness_us] = LATE
        return verdicts, int(running[-1])
    # Up to the first jump the running maximum is the clock; at a jump the clock takes one step, then start anew.
    first = int(jumps[0])
    verdicts[:first][times_us[:first] < running[:first] - lateness_us] = LATE
    clock = int(running[first])
    for i in range(first, n):
        t = int(times_us[i])
        if t > clock + max_step_us:
            verdicts[i] = FUTURE
            clock += max_step_us
        elif t < clock - lateness_us:
            verdicts[i] = LATE
        else:
            clock = max(clock, t)
    return verdicts, clock
