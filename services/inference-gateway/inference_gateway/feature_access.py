"""Access to the online feature store that survives its absence: nobody waits for a Redis that is known to be away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from feature_store.online import OnlineFeatures
from service_kit.health import Health

from inference_gateway.circuit import Circuit

_NOBODY = b"\0" * 16
_LAST_CALLS_S = 1.0


class FeatureAccess:
    """`connect` makes the store; it is tried until it works. Owned by the event loop."""

    def __init__(
        self,
        connect: Callable[[], Awaitable[OnlineFeatures]],
        health: Health,
        store: OnlineFeatures | None,
    ) -> None:
        self._connect = connect
        self._store = store
        self._returned: list[Callable[[], None]] = []
        self._circuit = Circuit(
            "features",
            self._probe,
            health,
            on_close=self._back,
            start_open=None if store is not None else "Redis has not been reached yet",
        )

    @property
    def usable(self) -> bool:
        return self._store is not None and not self._circuit.open

    @property
    def store(self) -> OnlineFeatures:
        """The store; only while `usable`."""
        if self._store is None:
            raise RuntimeError("the feature store was never reached")
        return self._store

    async def replace(self, new: OnlineFeatures) -> None:
        """From the next read on by `new`; calls under way are finished by the old store."""
        old, self._store = self._store, new
        if old is not None:
            await asyncio.sleep(_LAST_CALLS_S)
            await old.close()

    async def warm_up(self) -> None:
        """Read every view once, so that the first request does not pay for what Python does the first time."""
        if self.usable:
            now_us = time.time_ns() // 1_000
            for view in self.store.plan.views:
                await self.store.read(view.name, ["trine-warm-up"], now_us)

    def failed(self, reason: str) -> None:
        """A call failed: nobody calls until a probe has worked."""
        self._circuit.failed(reason)

    def on_return(self, listener: Callable[[], None]) -> None:
        """Call `listener` whenever the store can be used again."""
        self._returned.append(listener)

    async def close(self) -> None:
        await self._circuit.close()
        if self._store is not None:
            await self._store.close()

    async def _probe(self) -> None:
        if self._store is None:
            self._store = await self._connect()
        await self._store.recall("trine-gateway-probe", _NOBODY)

    def _back(self) -> None:
        for listener in self._returned:
            listener()
