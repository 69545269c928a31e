"""Several servers as one: started in parallel where they may be, started again when they die, stopped in order.

Relies on `LocalServer`; knows nothing of what the servers are.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from enum import StrEnum

from trine_cli.local.errors import LocalStackError, ProcessDied
from trine_cli.local.server import LocalServer

# sysexits' EX_CONFIG: how a service says that starting it again cannot help.
_REFUSED = 78
_FIRST_BACKOFF_S, _LONGEST_BACKOFF_S, _CALM_S = 0.5, 15.0, 30.0


class State(StrEnum):
    """What a component is doing, as shown to people."""

    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    PAUSED = "paused"
    DIED = "died"
    STOPPING = "stopping"
    STOPPED = "stopped"
    REFUSED = "refused"


@dataclass(eq=False)
class Component:
    """A supervised server: what must be ready `after` which it starts, and what to do once it is (`prepare`)."""

    server: LocalServer
    after: tuple[str, ...] = ()
    prepare: Callable[[], None] | None = None
    state: State = State.WAITING
    note: str = ""
    deaths: int = 0
    wanted: bool = True
    ready: threading.Event = field(default_factory=threading.Event)
    lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def name(self) -> str:
        return self.server.name

    @property
    def calm_s(self) -> float:
        """Seconds since its process was started."""
        return time.time() - self.server.process.started_at if self.server.process else 0.0


class Supervisor:
    """Starts, watches and stops `components`. `say` gets a line for people whenever something happens."""

    def __init__(self, components: Iterable[Component], say: Callable[[str], None] = lambda line: None) -> None:
        self.components = {component.name: component for component in components}
        self._say = say
        self._closing = threading.Event()
        self._watchers: list[threading.Thread] = []

    def start(self) -> None:
        """Start everything; raises the first failure after stopping what had started."""
        with ThreadPoolExecutor(len(self.components) or 1) as pool:
            futures = [pool.submit(self._start_first, component) for component in self.components.values()]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:
                if not all(future.done() and future.exception() is None for future in futures):
                    self.stop()
        # The cause is the component that failed by itself, not those that were stopped because of it.
        for future in futures:
            if (error := future.exception()) is not None and not isinstance(error, _GivenUp):
                raise error
        for component in self.components.values():
            watcher = threading.Thread(target=self._watch, args=(component,), name=f"watch {component.name}")
            watcher.daemon = True
            watcher.start()
            self._watchers.append(watcher)

    def stop(self) -> None:
        """Stop everything: what nobody depends on first; what is left in the same step at the same time."""
        self._closing.set()
        left = dict(self.components)
        while left:
            step = [c for c in left.values() if not any(c.name in other.after for other in left.values())]
            with ThreadPoolExecutor(len(step)) as pool:
                for done in [pool.submit(self.stop_one, c.name) for c in step]:
                    done.result()
            for component in step:
                del left[component.name]
        for watcher in self._watchers:
            watcher.join()
        self._watchers.clear()

    def kill(self) -> None:
        """SIGKILL to everything."""
        self._closing.set()
        for component in self.components.values():
            component.wanted = False
            component.server.kill()

    def stop_one(self, name: str) -> None:
        """Stop a component in order; it stays down until `start_one`."""
        component = self._component(name)
        component.wanted = False
        with component.lock:
            if component.server.process is not None:
                component.state = State.STOPPING
                code = component.server.stop()
                component.note = f"exit code {code}" if code else ""
            component.state = State.STOPPED
            component.ready.clear()

    def kill_one(self, name: str) -> None:
        """SIGKILL to a component; it stays down until `start_one`."""
        component = self._component(name)
        component.wanted = False
        with component.lock:
            component.server.kill()
            component.state, component.note = State.STOPPED, "killed"
            component.ready.clear()

    def start_one(self, name: str) -> None:
        """Start a component that was stopped or killed, on the same data and ports, and wait until it is ready."""
        component = self._component(name)
        with component.lock:
            component.wanted = True
            component.server.launch()
            self._until_ready(component)

    def restart_one(self, name: str) -> None:
        """Stop in order, start again, wait until it is ready."""
        with self._component(name).lock:
            self.stop_one(name)
            self.start_one(name)

    def pause_one(self, name: str) -> None:
        """SIGSTOP."""
        component = self._component(name)
        component.server.pause()
        component.state = State.PAUSED

    def resume_one(self, name: str) -> None:
        """SIGCONT."""
        component = self._component(name)
        component.server.resume()
        component.state = State.READY

    def _component(self, name: str) -> Component:
        if name not in self.components:
            raise LocalStackError(f"no component {name!r}; there are {', '.join(self.components)}")
        return self.components[name]

    def _start_first(self, component: Component) -> None:
        for name in component.after:
            if name in self.components:
                while not self.components[name].ready.wait(0.05):
                    if self._closing.is_set():
                        raise _GivenUp
        try:
            with component.lock:
                if self._closing.is_set():
                    raise _GivenUp
                component.state = State.STARTING
                component.server.launch()
            self._until_ready(component)
        except Exception as error:
            if self._closing.is_set():
                raise _GivenUp from error
            self._closing.set()
            raise

    def _until_ready(self, component: Component) -> None:
        component.state, component.note = State.STARTING, ""
        component.server.wait_ready()
        if component.prepare is not None:
            component.prepare()
        component.state = State.READY
        component.ready.set()
        self._say(f"{component.name} is ready at {component.server.address} ({component.server.ready_after_s:.1f} s)")

    def _watch(self, component: Component) -> None:
        backoff = _FIRST_BACKOFF_S
        while not self._closing.wait(0.1):
            with component.lock:
                died = self._death_of(component)
            if died is None or component.state is State.REFUSED:
                continue
            if component.calm_s > _CALM_S:
                backoff = _FIRST_BACKOFF_S
            component.state, component.note = State.DIED, f"{died.how}; again in {backoff:g} s"
            self._say(f"{component.name} {died.how}; starting it again in {backoff:g} s (log: {died.log})")
            if self._closing.wait(backoff):
                return
            backoff = min(backoff * 2, _LONGEST_BACKOFF_S)
            self._start_again(component)

    def _death_of(self, component: Component) -> ProcessDied | None:
        """Count the death of a component that should live; None where it lives, or was put down."""
        process = component.server.process
        if not component.wanted or component.state is State.REFUSED or process is None or process.alive:
            return None
        died = ProcessDied(component.name, process.returncode or 0, process.log)
        component.deaths += 1
        component.ready.clear()
        if died.returncode == _REFUSED:
            component.state, component.note = State.REFUSED, "refuses to start; see its log"
            self._say(str(died))
        return died

    def _start_again(self, component: Component) -> None:
        try:
            with component.lock:
                if not component.wanted or component.server.alive or self._closing.is_set():
                    return
                component.server.launch()
            self._until_ready(component)
        except LocalStackError as error:
            if component.wanted and not self._closing.is_set():
                self._say(str(error))
                component.server.kill()


class _GivenUp(LocalStackError):
    """A component was not started because another one failed or everything is being stopped."""
