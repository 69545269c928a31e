"""A supervisor starts in order, starts again what died, leaves down what was put down, and stops all."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from trine_cli.local.errors import LocalStackError, ProcessDied
from trine_cli.local.ports import HOST, accepts_connections, free_port
from trine_cli.local.server import Launch, LocalServer
from trine_cli.local.supervisor import Component, State, Supervisor

# Listens after a delay, writes when it starts and ends; a file of its name with ".exit" makes it exit with that code.
_SERVER = """
import pathlib, signal, socket, sys, time
name, port, delay, folder = sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), pathlib.Path(sys.argv[4])
def note(what):
    with (folder / "order").open("a") as file:
        file.write(f"{name} {what}\\n")
def end(*_):
    note("stopped")
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
note("started")
wanted = folder / f"{name}.exit"
if wanted.exists():
    print("cannot go on")
    sys.exit(int(wanted.read_text()))
time.sleep(delay)
server = socket.create_server(("127.0.0.1", port))
note("ready")
while True:
    # Not a wait without end: Python would miss a signal that comes just before it.
    server.settimeout(0.2)
    try:
        server.accept()
    except TimeoutError:
        pass
"""


class Small(LocalServer):
    """A server that is ready when it listens."""

    def __init__(self, name: str, folder: Path, delay_s: float = 0.0) -> None:
        super().__init__(name, folder / f"{name}.log")
        self.port, self.folder, self.delay_s = free_port(), folder, delay_s

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    def _launch(self) -> Launch:
        command = [sys.executable, "-c", _SERVER, self.name, str(self.port), str(self.delay_s), str(self.folder)]
        return Launch(command, ports=[self.port])

    def _missing(self) -> str | None:
        return None if accepts_connections(self.port) else "not listening"


def order(folder: Path) -> list[str]:
    return (folder / "order").read_text().splitlines()


def eventually(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.02)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def pair(tmp_path: Path, said: list[str]) -> Iterator[Supervisor]:
    """`store`, and `user` which needs it."""
    components = [Component(Small("user", tmp_path), after=("store",)), Component(Small("store", tmp_path, 0.2))]
    supervisor = Supervisor(components, said.append)
    supervisor.start()
    yield supervisor
    supervisor.stop()


def test_starts_after_dependencies_and_stops_before_them(pair: Supervisor, tmp_path: Path) -> None:
    pids = [component.server.pid for component in pair.components.values()]
    pair.stop()
    assert order(tmp_path) == [
        "store started",
        "store ready",
        "user started",
        "user ready",
        "user stopped",
        "store stopped",
    ]
    assert not any(psutil.pid_exists(pid) for pid in pids if pid)


def test_a_component_that_dies_is_started_again_and_it_says_so(pair: Supervisor, said: list[str]) -> None:
    store = pair.components["store"]
    killed = store.server.pid
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: store.state is State.READY and store.server.pid not in (None, killed))
    assert accepts_connections(store.server.port)  # type: ignore[attr-defined]
    assert any(line.startswith("store was killed by signal 9; starting it again in 0.5 s") for line in said)
    assert store.deaths == 1


def test_a_component_that_keeps_dying_is_tried_again_later_each_time(
    pair: Supervisor, said: list[str], tmp_path: Path
) -> None:
    (tmp_path / "user.exit").write_text("1")
    user = pair.components["user"]
    assert user.server.pid is not None
    os.kill(user.server.pid, signal.SIGKILL)
    eventually(lambda: any("user exited with code 1; starting it again in 1 s" in line for line in said))
    (tmp_path / "user.exit").unlink()
    eventually(lambda: user.state is State.READY)
    assert user.deaths == 2


def test_a_refusal_is_not_tried_again(pair: Supervisor, said: list[str], tmp_path: Path) -> None:
    (tmp_path / "user.exit").write_text("78")
    user = pair.components["user"]
    assert user.server.pid is not None
    os.kill(user.server.pid, signal.SIGKILL)
    eventually(lambda: user.state is State.REFUSED)
    assert any("cannot go on" in line for line in said)
    (tmp_path / "user.exit").unlink()
    pair.start_one("user")
    assert user.state is State.READY


def test_what_was_stopped_or_killed_on_purpose_stays_down_until_started(pair: Supervisor) -> None:
    user = pair.components["user"]
    for put_down in (pair.stop_one, pair.kill_one):
        put_down("user")
        assert user.state is State.STOPPED
        # Longer than the watcher's look and its first pause.
        with pytest.raises(AssertionError):
            eventually(lambda: user.server.alive, seconds=1.0)
        pair.start_one("user")
        assert user.server.alive
    before = user.server.pid
    pair.restart_one("user")
    assert user.server.pid not in (None, before)
    assert user.deaths == 0


def test_pause_and_resume(pair: Supervisor) -> None:
    pid = pair.components["user"].server.pid
    assert pid is not None
    pair.pause_one("user")
    eventually(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    assert pair.components["user"].state is State.PAUSED
    pair.resume_one("user")
    eventually(lambda: psutil.Process(pid).status() != psutil.STATUS_STOPPED)


def test_one_that_cannot_start_stops_the_others_and_is_the_error(tmp_path: Path) -> None:
    (tmp_path / "broken.exit").write_text("3")
    components = [
        Component(Small("store", tmp_path)),
        Component(Small("slow", tmp_path, delay_s=60)),
        Component(Small("broken", tmp_path), after=("store",)),
        Component(Small("last", tmp_path), after=("broken",)),
    ]
    supervisor = Supervisor(components)
    with pytest.raises(ProcessDied, match=r"broken exited with code 3(?s:.)*cannot go on"):
        supervisor.start()
    assert "last started" not in order(tmp_path)
    assert not any(component.server.alive for component in components)


def test_a_port_that_somebody_has_is_the_error(tmp_path: Path) -> None:
    small = Small("store", tmp_path)
    with socket.create_server((HOST, small.port)), pytest.raises(LocalStackError, match=f"port {small.port} is taken"):
        Supervisor([Component(small)]).start()


def test_an_unknown_component_is_named_with_those_there_are(pair: Supervisor) -> None:
    with pytest.raises(LocalStackError, match="no component 'redis'; there are user, store"):
        pair.stop_one("redis")
