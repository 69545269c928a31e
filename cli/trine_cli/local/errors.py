"""What can go wrong with a local process: one tree, each error says what was found and where to look.

LocalStackError
├── ProcessDied      it ended while somebody waited for it; carries its last log lines
├── NotReady         it lives, but was not ready in time; carries what was still missing
├── PortTaken        a port that was asked for belongs to another process
└── MissingProgram   something that must be installed is not (Java, a Redis server)
"""

from __future__ import annotations

from pathlib import Path

from trine_cli.errors import Unavailable

_LINES = 25


class LocalStackError(Unavailable):
    """Base of everything that this package raises on purpose."""


class ProcessDied(LocalStackError):
    """A child ended on its own. `returncode` is as in subprocess: negative for a signal."""

    def __init__(self, name: str, returncode: int, log: Path) -> None:
        self.name, self.returncode, self.log = name, returncode, log
        self.how = f"was killed by signal {-returncode}" if returncode < 0 else f"exited with code {returncode}"
        super().__init__(f"{name} {self.how}; the end of {log}:\n{last_lines(log)}")


class NotReady(LocalStackError):
    """A child lives but did not become ready within `seconds`; `missing` says what it still lacked."""

    def __init__(self, name: str, seconds: float, missing: str, log: Path) -> None:
        self.name, self.log = name, log
        super().__init__(f"{name} is not ready after {seconds:g} s: {missing}; the end of {log}:\n{last_lines(log)}")


class PortTaken(LocalStackError):
    """A fixed port is in use by somebody else."""

    def __init__(self, name: str, port: int, holder: str) -> None:
        super().__init__(f"{name}: port {port} is taken{holder}; choose another one or leave it out to get a free one")


class MissingProgram(LocalStackError):
    """A program that this machine has to have is not installed."""


def last_lines(log: Path, count: int = _LINES) -> str:
    """The last `count` lines of a log, indented; reads at most its last 64 KiB."""
    try:
        with log.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 65536))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError as error:
        return f"    (no log: {error})"
    return "\n".join(f"    {line}" for line in lines[-count:]) or "    (empty)"
