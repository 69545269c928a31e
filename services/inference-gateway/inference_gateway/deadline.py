"""The deadline budget of a request: when an answer must be decided so that the reply is with the client in time.

    arrival ── queue, features ── model ──│── reply reserve ──│ client's deadline
                                          answer_by
Features and model share what is before `answer_by`: the model gets what the features leave, and is not asked where
that is less than `model_min_s`. At `answer_by` whatever is known decides. Times are time.perf_counter() seconds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")

#: Per slot of a few milliseconds: a hiccup is remembered for some tenths of a second.
_LAG_DECAY = 0.98


@dataclass(frozen=True, slots=True)
class DeadlinePolicy:
    """`default_s` where the client sets no deadline; `longest_s` caps what a patient client's request may take.

    The reserve is `reserve_share` of the deadline within `reserve_min_s` and `reserve_max_s`: for recording the
    decision, sending it, and for what the server cannot see: the way of the request and the wait for a busy core.
    """

    default_s: float = 0.1
    longest_s: float = 2.0
    reserve_share: float = 0.2
    reserve_min_s: float = 0.002
    reserve_max_s: float = 0.03
    model_min_s: float = 0.002

    def answer_within(self, remaining_s: float | None, lag_s: float = 0.0) -> float:
        """Seconds from arrival to the decision at the latest, for a client with `remaining_s` left; may be <= 0.

        `lag_s`: how late this process lately was with anything. The reply will be too, and the request was.
        """
        given = self.default_s if remaining_s is None else min(remaining_s, self.longest_s)
        reserve = min(max(given * self.reserve_share, self.reserve_min_s), self.reserve_max_s)
        return given - reserve - min(2 * lag_s, given / 2)


class DeadlineWheel(Generic[T]):
    """Calls `overdue` with what is due, one timer for all that are due within the same few milliseconds.

    Nothing is taken out: `overdue` is given what was finished long ago too and must know. Owned by the event loop.
    `lag_s`: how late its timers were lately, which says how long everything waits for the core.
    """

    def __init__(self, overdue: Callable[[list[T]], None], slot_s: float = 0.002) -> None:
        self._overdue, self._slot_s = overdue, slot_s
        self._slots: dict[int, list[T]] = {}
        self.lag_s = 0.0

    def add(self, thing: T, at_s: float) -> None:
        """`thing` is due at `at_s` on time.perf_counter(), or a slot earlier."""
        number = int(at_s / self._slot_s)
        slot = self._slots.get(number)
        if slot is not None:
            slot.append(thing)
            return
        self._slots[number] = [thing]
        # The loop's own clock is in whole milliseconds and as old as this turn of it.
        wait_s = number * self._slot_s - time.perf_counter()
        asyncio.get_running_loop().call_later(max(wait_s, 0.0), self._turn, number)

    def _turn(self, number: int) -> None:
        late_s = time.perf_counter() - number * self._slot_s
        self.lag_s = max(late_s, self.lag_s * _LAG_DECAY)
        self._overdue(self._slots.pop(number))
