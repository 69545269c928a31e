"""Keeping hold of a run: its lease renewed while it works, and SIGTERM turned into an orderly end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from redis.exceptions import RedisError
from service_kit.logs import get_logger

from batch_scorer.registry import Lease, Registry

log = get_logger(__name__)


class Terminated(SystemExit):
    """SIGTERM: what has begun is cleaned up, and the process ends as one that was told to."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


@contextmanager
def heartbeat(registry: Registry, lease: Lease, lease_s: float, lost: threading.Event) -> Iterator[None]:
    """Renews the lease in a thread; `lost` is set when another run has taken the job."""

    def renew() -> bool:
        try:
            if not registry.renew(lease, lease_s):
                lost.set()
        except RedisError as error:
            log.warning("the lease could not be renewed", run=lease.run, reason=str(error))
        return not lost.is_set()

    with meanwhile("lease", lease_s / 3, renew):
        yield


@contextmanager
def meanwhile(name: str, every_s: float, work: Callable[[], bool]) -> Iterator[None]:
    """Calls `work` every so often in a thread, until the block ends or it says that there is no more to do."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(every_s) and work():
            pass

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(5)


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM ends the run as an exception does; only where signals can be had, in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(_: int, __: FrameType | None) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
