"""Start, run, drain and end one service; every `main.py` is built on this.

    async def start(life: Lifecycle, settings: Settings) -> None:      # composition root
        store = await Store.connect(settings.redis_url)
        life.on_stop("store", store.close)
        server = GrpcServer(...)
        await server.start()
        life.on_stop("grpc", server.stop, deadline_s=10)

    sys.exit(run("gateway", start, Settings))

SIGTERM or SIGINT: readiness off, `drain_notice_s`, then what `on_stop`, `task` and `thread` registered, in the
reverse order of registration (what was started last uses what was started before it), each with its deadline.
A second signal ends the process at once. Exit codes: 0 drained; 1 something failed; 78 (EX_CONFIG) start refused.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import uvloop

from service_kit import logs, processes
from service_kit.health import Health
from service_kit.metrics import Metrics
from service_kit.settings import ProcessSettings, ServiceSettings, SettingsError, load

EXIT_OK, EXIT_FAILED, EXIT_REFUSED = 0, 1, 78

log = logs.get_logger(__name__)


class StartRefused(Exception):
    """The service must not run as it is set up (wrong settings, a Redis that evicts…); restarting cannot help."""


class Lifecycle:
    """What a service is given to register its parts with."""

    def __init__(self, component: str) -> None:
        self.metrics = Metrics(component)
        self.health = Health(self.metrics)
        #: Set once the process is to end; long waits may watch it.
        self.stopping = asyncio.Event()
        self.failure: str | None = None
        self._parts: list[tuple[str, Callable[[], Awaitable[object] | object], float]] = []
        self._loop = asyncio.get_running_loop()

    def on_stop(self, name: str, stop: Callable[[], Awaitable[object] | object], deadline_s: float = 5.0) -> None:
        """Call (and await) `stop` when draining; last registered, first stopped."""
        self._parts.append((name, stop, deadline_s))

    def task(self, name: str, work: Coroutine[Any, Any, object], deadline_s: float = 5.0) -> None:
        """Run `work` for as long as the service lives: cancelled in its turn; an exception fails the service."""
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(self._watch)

        async def stop() -> None:
            task.cancel()
            await asyncio.wait([task])

        self.on_stop(name, stop, deadline_s)

    def thread(self, name: str, work: Callable[[threading.Event], object], deadline_s: float = 30.0) -> None:
        """Run blocking `work(stop)`, which returns soon after `stop` is set; an exception fails the service."""
        stop_it, done = threading.Event(), asyncio.Event()

        def body() -> None:
            try:
                work(stop_it)
            except BaseException as error:
                log.error("thread failed", thread=name, exc_info=error)
                self._loop.call_soon_threadsafe(self.fail, f"{name}: {error!r}")
            finally:
                self._loop.call_soon_threadsafe(done.set)

        async def stop() -> None:
            stop_it.set()
            await done.wait()

        threading.Thread(target=body, name=name, daemon=True).start()
        self.on_stop(name, stop, deadline_s)

    def fail(self, reason: str) -> None:
        """End the service with exit code 1, drained as far as it goes."""
        if self.failure is None:
            self.failure = reason
            log.error("service failed", reason=reason)
        self.stopping.set()

    def _watch(self, task: asyncio.Task[object]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("task failed", task=task.get_name(), exc_info=error)
            self.fail(f"{task.get_name()}: {error!r}")

    async def drain(self) -> bool:
        """Stop every part; True where each ended well and in time."""
        clean = True
        while self._parts:
            name, stop, deadline_s = self._parts.pop()
            try:
                async with asyncio.timeout(deadline_s):
                    result = stop()
                    if inspect.isawaitable(result):
                        await result
            except TimeoutError:
                clean = False
                log.error("part did not stop in time", part=name, deadline_s=deadline_s)
            except Exception as error:
                clean = False
                log.error("part failed to stop", part=name, exc_info=error)
        return clean


S = TypeVar("S", bound=ServiceSettings)
Start = Callable[[Lifecycle, S], Awaitable[None]]


def run(component: str, start: Start[S], settings_class: type[S]) -> int:
    """Run `start` under a uvloop event loop until a signal or a failure, then drain. Returns the exit code.

    With the setting `processes` > 1 the first process only supervises that many copies of itself.
    """
    logs.configure(component)
    try:
        settings = load(settings_class)
    except SettingsError as error:
        log.error("start refused", reason=str(error))
        return EXIT_REFUSED
    logs.configure(component, settings.log_level)
    own = ProcessSettings()
    if own.index is None and settings.processes > 1:
        return processes.supervise(settings.processes, give_up_on=EXIT_REFUSED)
    if own.parent is not None:
        processes.end_with_parent(own.parent)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_serve(component, start, settings))


def _spare_collector() -> None:
    """What is there after the start stays: the collector need not walk it again, nor run as often as for a script.

    With the defaults it took 6% of a busy gateway's core, and its full runs were pauses in the 99.9th percentile.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


async def _serve(component: str, start: Start[S], settings: S) -> int:
    life = Lifecycle(component)
    loop = asyncio.get_running_loop()

    def on_signal(number: signal.Signals) -> None:
        if life.stopping.is_set():
            log.error("second signal, ending at once", signal=number.name)
            os._exit(EXIT_FAILED)
        log.info("draining", signal=number.name)
        life.stopping.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)

    code = EXIT_OK
    starting = asyncio.ensure_future(start(life, settings))
    stopped = asyncio.create_task(life.stopping.wait())
    await asyncio.wait([starting, stopped], return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        await asyncio.wait([starting])
    if not starting.cancelled() and (error := starting.exception()) is not None:
        refused = isinstance(error, StartRefused)
        log.error("start refused" if refused else "start failed", reason=str(error), exc_info=not refused and error)
        code = EXIT_REFUSED if refused else EXIT_FAILED
    elif not life.stopping.is_set():
        life.health.unblock("start")
        _spare_collector()
        log.info("started")
        await stopped
    life.stopping.set()
    await stopped
    was_ready = life.health.ready
    life.health.block("stop", "draining")
    if was_ready and life.failure is None and settings.drain_notice_s > 0:
        await asyncio.sleep(settings.drain_notice_s)
    clean = await life.drain()
    if code == EXIT_OK and (life.failure is not None or not clean):
        code = EXIT_FAILED
    log.info("ended", exit_code=code)
    return code
