"""A child is ready when its check says so, says why when it is not, and never outlives its owner."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from trine_cli.local.errors import NotReady, ProcessDied
from trine_cli.local.process import ChildProcess

# A child with a grandchild in its group; both ignore SIGTERM when told to.
_FAMILY = """
import os, signal, subprocess, sys, time
if "stubborn" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
grandchild = subprocess.Popen(["sleep", "1000"], start_new_session="detached" in sys.argv)
print("grandchild", grandchild.pid, flush=True)
time.sleep(1000)
"""


def family(log: Path, *words: str) -> tuple[ChildProcess, int]:
    """A child, and the pid of its grandchild."""
    child = ChildProcess("family", [sys.executable, "-c", _FAMILY, *words], log=log)
    child.wait_ready(lambda: None if log.exists() and log.read_text().endswith("\n") else "no pid", 20)
    return child, int(log.read_text().split()[1])


def gone(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def eventually(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_stop_ends_the_whole_group(tmp_path: Path) -> None:
    child, grandchild = family(tmp_path / "log")
    assert child.stop(grace_s=10) == -signal.SIGTERM
    assert eventually(lambda: gone(grandchild))


def test_stop_kills_what_ignores_sigterm_after_the_grace(tmp_path: Path) -> None:
    child, grandchild = family(tmp_path / "log", "stubborn")
    started = time.monotonic()
    assert child.stop(grace_s=0.3) == -signal.SIGKILL
    assert 0.3 <= time.monotonic() - started < 5
    assert eventually(lambda: gone(grandchild))


def test_stop_ends_a_paused_child(tmp_path: Path) -> None:
    child, _ = family(tmp_path / "log")
    child.pause()
    assert eventually(lambda: psutil.Process(child.pid).status() == psutil.STATUS_STOPPED)
    assert child.stop(grace_s=10) == -signal.SIGTERM


def test_resume_lets_a_paused_child_go_on(tmp_path: Path) -> None:
    child, _ = family(tmp_path / "log")
    child.pause()
    assert eventually(lambda: psutil.Process(child.pid).status() == psutil.STATUS_STOPPED)
    child.resume()
    assert eventually(lambda: psutil.Process(child.pid).status() != psutil.STATUS_STOPPED)
    child.kill()


def test_a_child_that_dies_fails_at_once_with_its_last_lines(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('port is not mine'); raise SystemExit(3)"]
    child = ChildProcess("broken", command, log=tmp_path / "log")
    with pytest.raises(ProcessDied, match=r"broken exited with code 3(?s:.)*port is not mine"):
        child.wait_ready(lambda: "never", timeout_s=60)


def test_a_child_that_is_not_ready_in_time_says_what_is_missing(tmp_path: Path) -> None:
    child, _ = family(tmp_path / "log")
    with pytest.raises(NotReady, match=r"not ready after 0\.2 s: no leader(?s:.)*grandchild"):
        child.wait_ready(lambda: "no leader", timeout_s=0.2)
    child.kill()


def test_a_redis_which_overwrites_its_environment_is_not_left_either(tmp_path: Path) -> None:
    program = (
        "import sys, time; from pathlib import Path; from trine_cli.local.redis_server import RedisServer\n"
        "print(RedisServer(Path(sys.argv[1])).start().pid, flush=True); time.sleep(1000)"
    )
    owner = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    redis = int(owner.stdout.readline())
    assert not gone(redis)
    owner.kill()
    owner.wait()
    assert eventually(lambda: gone(redis))


@pytest.mark.parametrize("words", [[], ["stubborn"], ["detached"]], ids=["plain", "ignores SIGTERM", "own session"])
def test_nothing_is_left_when_the_owner_is_killed(tmp_path: Path, words: list[str]) -> None:
    log = tmp_path / "log"
    owner = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time; from pathlib import Path; from trine_cli.local.process import ChildProcess\n"
            f"ChildProcess('family', [sys.executable, '-c', {_FAMILY!r}, *sys.argv[2:]], log=Path(sys.argv[1]))\n"
            "time.sleep(1000)",
            str(log),
            *words,
        ]
    )
    try:
        assert eventually(lambda: log.exists() and log.read_text().endswith("\n"))
        grandchild = int(log.read_text().split()[1])
        child = psutil.Process(grandchild).ppid()
        assert not gone(child)
    finally:
        os.kill(owner.pid, signal.SIGKILL)
        owner.wait()
    assert eventually(lambda: gone(child) and gone(grandchild))
