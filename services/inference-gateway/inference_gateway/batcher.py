"""Adaptive micro-batching without timers: a lone request waits for nobody; while a batch is worked on, more gather.

One batch at a time is the rule, so that batches grow with the load by themselves and what a batch costs once (a round
trip, NumPy's calls) is shared by more. Further lanes are for full batches, where nothing is gained by gathering, and
for what has waited for `patience_s` behind one that may be stuck.
`held` keeps a stage from running ahead of the next one, whose batches would be as small as this one's.
What waits is bounded by who adds (the scorer's limit); a batch holds at most `max_items`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import Generic, TypeVar

from service_kit.logs import get_logger

T = TypeVar("T")

log = get_logger(__name__)


class Batcher(Generic[T]):
    """`work` is run on each batch, at most `lanes` at a time. Owns the tasks it starts.

    `held`: says whether batches have to wait; who changes its mind calls `look`. `together`: what is added within one
    turn of the event loop goes together; else a batch starts within `add`.
    """

    def __init__(
        self,
        work: Callable[[list[T]], Awaitable[None]],
        *,
        lanes: int,
        max_items: int,
        held: Callable[[], bool] = lambda: False,
        together: bool = False,
        patience_s: float = 0.02,
    ) -> None:
        self._work, self._lanes, self._max_items = work, lanes, max_items
        self._held, self._together, self._patience_s = held, together, patience_s
        self._timer: asyncio.TimerHandle | None = None
        self._impatient = False
        self._waiting: deque[T] = deque()
        self._running: set[asyncio.Task[None]] = set()
        self._planned = False

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting)

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._running)

    def add(self, items: Iterable[T]) -> None:
        self._waiting.extend(items)
        self.look()

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

    def look(self) -> None:
        """Start what can be started."""
        if self._planned or not self._waiting:
            return
        if not self._may_start():
            if self._timer is None and len(self._running) < self._lanes:
                self._timer = asyncio.get_running_loop().call_later(self._patience_s, self._waited_enough)
        elif self._together:
            self._planned = True
            asyncio.get_running_loop().call_soon(self._start)
        else:
            self._start()

    def _may_start(self) -> bool:
        busy = len(self._running)
        if busy == 0 or (busy < self._lanes and (self._impatient or len(self._waiting) >= self._max_items)):
            return not self._held()
        return False

    def _waited_enough(self) -> None:
        self._timer, self._impatient = None, True
        self.look()

    def _start(self) -> None:
        self._planned = False
        waiting = self._waiting
        while waiting and self._may_start():
            if self._timer is not None:
                self._timer.cancel()
            self._timer, self._impatient = None, False
            if len(waiting) <= self._max_items:
                batch = list(waiting)
                waiting.clear()
            else:
                batch = [waiting.popleft() for _ in range(self._max_items)]
            task = asyncio.create_task(self._run(batch))
            self._running.add(task)
            task.add_done_callback(self._ended)
        if waiting:
            self.look()

    async def _run(self, batch: list[T]) -> None:
        try:
            await self._work(batch)
        except Exception as error:
            # Who waits for these items is answered at their deadline.
            log.error("a batch failed", items=len(batch), exc_info=error)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self.look()
