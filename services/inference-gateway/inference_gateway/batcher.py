"""Adaptive micro-batching: a lone request waits for nobody; the more are under way, the more go together.

A batch starts when a lane is free and it holds a quarter of all that are under way (waiting, or in this and later
stages), or after `patience_s`. So one request at a time is a batch of one at once, and 64 clients that call in a
closed loop make batches of about 16: what a batch costs once (a round trip, NumPy's calls) is shared. What waits is
bounded by who adds (the scorer's limit); a batch holds at most `max_items`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Generic, TypeVar

from service_kit.logs import get_logger

T = TypeVar("T")
#: A batch holds at least one of so many that are under way.
_SHARE = 4

log = get_logger(__name__)


class Batcher(Generic[T]):
    """`work` is run on each batch, at most `lanes` at a time. Owns the tasks it starts.

    `under_way`: how many there are in all, these included; None: a batch starts within `add`, whatever it holds.
    """

    def __init__(
        self,
        work: Callable[[list[T]], Awaitable[None]],
        *,
        lanes: int,
        max_items: int,
        under_way: Callable[[], int] | None = None,
        patience_s: float = 0.004,
    ) -> None:
        self._work, self._lanes, self._max_items = work, lanes, max_items
        self._under_way, self._patience_s = under_way, patience_s
        self._timer: asyncio.TimerHandle | None = None
        self._waiting: deque[T] = deque()
        self._running: set[asyncio.Task[None]] = set()
        self._planned = False

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def add(self, items: Iterable[T]) -> None:
        self._waiting.extend(items)
        self._plan()

    async def moved(self) -> None:
        """Until a batch has ended; at once (a turn of the loop) where none runs."""
        if self._running:
            await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
        else:
            await asyncio.sleep(0)

    async def idle(self) -> None:
        """Until nothing waits and nothing runs."""
        while self._waiting or self._running:
            await self.moved()

    def _plan(self) -> None:
        if self._planned or not self._waiting or len(self._running) >= self._lanes:
            return
        if self._under_way is None:
            self._start()
        else:
            # At the end of this turn of the loop: what arrives in one turn goes together.
            self._planned = True
            asyncio.get_running_loop().call_soon(self._start_if_enough)

    def _start_if_enough(self) -> None:
        self._planned = False
        count = len(self._waiting)
        if self._under_way is None or count >= self._max_items or count * _SHARE >= self._under_way():
            self._start()
        elif self._timer is None and count:
            self._timer = asyncio.get_running_loop().call_later(self._patience_s, self._start)

    def _start(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waiting = self._waiting
        while waiting and len(self._running) < self._lanes:
            if len(waiting) <= self._max_items:
                batch = list(waiting)
                waiting.clear()
            else:
                batch = [waiting.popleft() for _ in range(self._max_items)]
            task = asyncio.create_task(self._run(batch))
            self._running.add(task)
            task.add_done_callback(self._ended)

    async def _run(self, batch: list[T]) -> None:
        try:
            await self._work(batch)
        except Exception as error:
            # Who waits for these items is answered at their deadline.
            log.error("a batch failed", items=len(batch), exc_info=error)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._plan()
