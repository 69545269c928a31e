"""Whether a server we depend on is used at the moment, and how it comes back.

A failure opens the circuit: nobody waits for that server until `probe`, tried again and again in the background,
has succeeded. Timeouts count too, `patience` of them in a row: one slow call is no outage.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from service_kit.health import Health
from service_kit.logs import get_logger

log = get_logger(__name__)


class Circuit:
    """Owned by the event loop. Starts closed (in use) unless `start_open` says why not."""

    def __init__(
        self,
        part: str,
        probe: Callable[[], Awaitable[object]],
        health: Health,
        *,
        every_s: float = 0.1,
        probe_timeout_s: float = 2.0,
        patience: int = 3,
        on_close: Callable[[], None] | None = None,
        start_open: str | None = None,
    ) -> None:
        self.part = part
        self.open = False
        self._probe, self._health, self._on_close = probe, health, on_close
        self._every_s, self._probe_timeout_s, self._patience = every_s, probe_timeout_s, patience
        self._slow = 0
        self._task: asyncio.Task[None] | None = None
        if start_open is not None:
            self.failed(start_open)

    def failed(self, reason: str) -> None:
        """The server refused or is not there: stop using it."""
        if self.open:
            return
        self.open = True
        self._health.degrade(self.part, reason[:300])
        self._task = asyncio.create_task(self._recover(), name=f"probe:{self.part}")

    def slow(self, reason: str) -> None:
        """It did not answer in time."""
        self._slow += 1
        if self._slow >= self._patience:
            self.failed(reason)

    def worked(self) -> None:
        """It answered."""
        self._slow = 0

    async def close(self) -> None:
        """End the probing."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def silence(self) -> None:
        """From now on its health is nobody's: it was replaced."""
        self._health = Health()

    async def _recover(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._probe_timeout_s):
                    await self._probe()
                break
            except Exception as error:
                reason = str(error) or type(error).__name__
                self._health.degrade(self.part, reason[:300])
            await asyncio.sleep(self._every_s)
        self.open = False
        self._slow = 0
        self._health.restore(self.part)
        if self._on_close is not None:
            self._on_close()
