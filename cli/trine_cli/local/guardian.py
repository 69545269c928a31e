"""Kills what a dead owner left running: the children of a `trine` or pytest that was itself killed with -9.

Run as `python guardian.py TOKEN`, stdin being a pipe whose only writer is the owner. When the owner ends, however it
ends, the pipe reaches its end, and every process that carries the token in its environment is killed. Looking at
environments rather than at a list of pids also finds grandchildren, and cannot hit a stranger that got a reused pid.
"""

from __future__ import annotations

import contextlib
import os
import sys

TOKEN_VARIABLE = "TRINE_LOCAL_OWNER"


def kill_marked(token: str) -> int:
    """Kill every process whose environment has the token; returns how many were found."""
    import psutil

    found = 0
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(TOKEN_VARIABLE) == token:
                process.kill()
                found += 1
    return found


def main() -> None:
    """Wait for the end of stdin, then kill until a pass finds nobody (a process may have forked meanwhile)."""
    token = sys.argv[1]
    while os.read(0, 4096):
        pass
    for _ in range(100):
        if kill_marked(token) == 0:
            return


if __name__ == "__main__":
    main()
