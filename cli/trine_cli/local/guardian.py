"""Kills what a dead owner left running: the children of a `trine` or pytest that was itself killed with -9.

Run as `python guardian.py TOKEN`. Stdin is a pipe whose only writer is the owner, who writes the pid of every child.
When the owner ends, however it ends, the pipe reaches its end; then the children are killed (unless the pid has been
given to another process since), and so is every process that carries the token in its environment: descendants, in
whatever group. Neither way alone is enough: Redis overwrites its environment, and grandchildren have no entry.
"""

from __future__ import annotations

import contextlib
import os
import sys

TOKEN_VARIABLE = "TRINE_LOCAL_OWNER"


def read_children() -> dict[int, float]:
    """Read pids until the owner has ended; returns them with the start time of each process."""
    import psutil

    started: dict[int, float] = {}
    for line in sys.stdin:
        with contextlib.suppress(psutil.Error, ValueError):
            started[int(line)] = psutil.Process(int(line)).create_time()
    return started


def kill_left(token: str, children: dict[int, float]) -> int:
    """Kill the children and every process whose environment has the token; returns how many there were."""
    import psutil

    found = 0
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                continue
            is_child = children.get(process.pid) == process.create_time()
            if is_child or process.environ().get(TOKEN_VARIABLE) == token:
                process.kill()
                found += 1
    return found


def main() -> None:
    """Wait for the owner's end, then kill until a pass finds nobody (a process may have forked meanwhile)."""
    token = sys.argv[1]
    children = read_children()
    for _ in range(100):
        if kill_left(token, children) == 0:
            return


if __name__ == "__main__":
    main()
