"""Adaptive micro-batching: nobody waits while a lane is free; while all lanes are busy, what comes gathers.

So a batch is as large as the load makes it: one request at low load, all that came during the previous batch at high
load. What waits is bounded by who adds (the scorer's limit); a batch holds at most `max_items`.
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

    `gather`: wait for the end of this turn of the event loop, so that what arrives in one turn goes together;
    without it a batch starts within `add`.
    """

    def __init__(
        self, work: Callable[[list[T]], Awaitable[None]], *, lanes: int, max_items: int, gather: bool = True
    ) -> None:
        self._work, self._lanes, self._max_items, self._gather = work, lanes, max_items, gather
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
        if self._gather:
            self._planned = True
            asyncio.get_running_loop().call_soon(self._start)
        else:
            self._start()

    def _start(self) -> None:
        self._planned = False
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
