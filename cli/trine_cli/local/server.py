"""What all local servers share: start, ready, stop, pause, kill and restart on the same folder and ports."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from trine_cli.local.errors import LocalStackError
from trine_cli.local.ports import require_free
from trine_cli.local.process import ChildProcess


@dataclass(frozen=True)
class Launch:
    """How to start a process: its command, what to add to the environment, where to run, ports it will listen on."""

    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None
    ports: Sequence[int] = ()


class LocalServer(ABC):
    """A server as a child process. The object outlives its processes: `start()` after `stop()` or `kill()` starts it
    again with the same data, address and log file. As a context manager it is started on entry and stopped on exit."""

    ready_timeout_s = 60.0
    stop_grace_s = 15.0

    def __init__(self, name: str, log: Path) -> None:
        self.name, self.log = name, log
        self.process: ChildProcess | None = None
        self.ready_after_s: float | None = None

    @abstractmethod
    def _launch(self) -> Launch:
        """Prepare folders and files, and say how to start."""

    @abstractmethod
    def _missing(self) -> str | None:
        """What is missing for it to be ready; None when it is."""

    @property
    @abstractmethod
    def address(self) -> str:
        """What a client connects to, as shown to people."""

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.alive

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process is not None and self.process.alive else None

    def launch(self) -> None:
        """Start the process without waiting for it. Raises PortTaken."""
        if self.alive:
            raise LocalStackError(f"{self.name} runs already (pid {self.pid})")
        launch = self._launch()
        require_free(self.name, *launch.ports)
        self.ready_after_s = None
        self.process = ChildProcess(self.name, launch.argv, log=self.log, env=launch.env, cwd=launch.cwd)

    def wait_ready(self, timeout_s: float | None = None) -> None:
        """Wait until it answers. Raises ProcessDied or NotReady."""
        self.ready_after_s = self._started().wait_ready(self._missing, timeout_s or self.ready_timeout_s)

    def start(self) -> Self:
        """Launch and wait; what was started is stopped again where it does not become ready."""
        self.launch()
        try:
            self.wait_ready()
        except BaseException:
            self.kill()
            raise
        return self

    def stop(self) -> int | None:
        """End it in order (SIGTERM, SIGKILL after the grace). Returns the exit code; None where it never ran."""
        return self.process.stop(self.stop_grace_s) if self.process is not None else None

    def kill(self) -> None:
        """SIGKILL, at once."""
        if self.process is not None:
            self.process.kill()

    def restart(self) -> None:
        """Stop it in order where it lives, and start it again on the same data and ports."""
        self.stop()
        self.start()

    def pause(self) -> None:
        """SIGSTOP."""
        self._started().pause()

    def resume(self) -> None:
        """SIGCONT."""
        self._started().resume()

    def _started(self) -> ChildProcess:
        if self.process is None:
            raise LocalStackError(f"{self.name} was never started")
        return self.process

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()
