"""One child process: its own process group and log file, ready when a check says so, stopped by pid, never left behind.

Relies on `guardian.py` for the one case that this process cannot handle itself: being killed with -9.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from trine_cli.local import guardian
from trine_cli.local.errors import NotReady, ProcessDied

Check = Callable[[], str | None]
"""Says what is still missing, or None when ready. An OSError counts as missing."""

_guard_lock = threading.Lock()
_guards: dict[int, tuple[str, subprocess.Popen[bytes]]] = {}


def _owner_token() -> str:
    """The token of this process's guardian, which is started with the first child (again after a fork)."""
    with _guard_lock:
        if os.getpid() not in _guards:
            token = secrets.token_hex(16)
            environment = {k: v for k, v in os.environ.items() if k != guardian.TOKEN_VARIABLE}
            watch = subprocess.Popen(
                [sys.executable, guardian.__file__, token],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                env=environment,
            )
            _guards[os.getpid()] = (token, watch)
        return _guards[os.getpid()][0]


def _tell_guardian(pid: int) -> None:
    with _guard_lock:
        pipe = _guards[os.getpid()][1].stdin
        assert pipe is not None
        # Somebody may have killed the guardian: the child is then on its own, as anything is on kill -9 of both.
        with contextlib.suppress(BrokenPipeError):
            pipe.write(f"{pid}\n".encode())
            pipe.flush()


class ChildProcess:
    """A started child. All methods may be called from any thread, and again after it has ended."""

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        *,
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        """Start `argv`, output appended to `log`, `env` added to this process's environment."""
        self.name, self.log = name, log
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, **(env or {}), guardian.TOKEN_VARIABLE: _owner_token()}
        with log.open("ab") as output:
            self._popen = subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=environment,
                cwd=cwd,
            )
        self.pid = self._popen.pid
        _tell_guardian(self.pid)
        self.started_at = time.time()

    @property
    def returncode(self) -> int | None:
        """None while it lives; otherwise as in subprocess, negative for a signal."""
        return self._popen.poll()

    @property
    def alive(self) -> bool:
        return self.returncode is None

    def wait_ready(self, check: Check, timeout_s: float, every_s: float = 0.03) -> float:
        """Poll `check` until it returns None; returns the seconds since the start.

        Raises ProcessDied as soon as the child ends, NotReady when `timeout_s` has passed; both show its last lines.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            if (code := self.returncode) is not None:
                raise ProcessDied(self.name, code, self.log)
            try:
                missing = check()
            except OSError as error:
                missing = str(error)
            if missing is None:
                return time.time() - self.started_at
            if time.monotonic() > deadline:
                raise NotReady(self.name, timeout_s, missing, self.log)
            time.sleep(every_s)

    def signal(self, number: int) -> None:
        """Send a signal to the child alone; nothing happens where it has ended."""
        self._popen.send_signal(number)

    def wait(self, timeout_s: float) -> int:
        """Its return code; raises TimeoutError where it still lives after `timeout_s`."""
        try:
            return self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"{self.name} (pid {self.pid}) still lives after {timeout_s:g} s") from None

    def stop(self, grace_s: float = 10.0) -> int:
        """SIGTERM to the child; SIGKILL to its whole group when `grace_s` has passed or when it has ended."""
        if self.alive:
            self.signal(signal.SIGTERM)
            # In this order: a paused child wakes up to the SIGTERM that waits for it.
            self._signal_group(signal.SIGCONT)
            with contextlib.suppress(TimeoutError):
                self.wait(grace_s)
        return self.kill()

    def kill(self) -> int:
        """SIGKILL to the child's whole group, whoever of it is left; returns its return code."""
        self._signal_group(signal.SIGKILL)
        return self._popen.wait()

    def pause(self) -> None:
        """SIGSTOP to the whole group: it keeps its connections and does nothing."""
        self._signal_group(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT to the whole group."""
        self._signal_group(signal.SIGCONT)

    def _signal_group(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)
