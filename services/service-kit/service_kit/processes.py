"""Several processes of one service behind shared ports: a parent that starts, watches and restarts its children.

Children are this program executed anew (never forked: gRPC and prometheus_client do not survive a fork), told their
number through TRINE_PROCESS_INDEX. They share ports by SO_REUSEPORT, so a service with several processes needs
fixed port numbers.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import shutil
import signal
import sys
import tempfile
import time

from prometheus_client.multiprocess import mark_process_dead

from service_kit.logs import get_logger

_PR_SET_PDEATHSIG = 1
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0
#: A child that lived this long starts again without a pause.
_SETTLED_S = 10.0

log = get_logger(__name__)


def supervise(count: int, give_up_on: int) -> int:
    """Keep `count` copies of this program running until SIGTERM or SIGINT; the exit code for the parent.

    A child that dies is started again, after a growing pause if it lived only for moments; one that exits with
    `give_up_on` (it refuses to start) ends all of them with that code. Signals are passed on, a second one too.
    """
    given = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    directory = given or tempfile.mkdtemp(prefix="trine-metrics-")
    os.makedirs(directory, exist_ok=True)
    try:
        return asyncio.run(_Supervisor(directory, give_up_on).run(count))
    finally:
        if not given:
            shutil.rmtree(directory, ignore_errors=True)


def end_with_parent(parent: int) -> None:
    """Have the kernel send SIGTERM to this process when its parent dies, however that happens."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        # It died before the kernel knew.
        os.kill(os.getpid(), signal.SIGTERM)


class _Supervisor:
    def __init__(self, metrics_directory: str, give_up_on: int) -> None:
        self._directory = metrics_directory
        self._give_up_on = give_up_on
        self._children: dict[int, asyncio.subprocess.Process] = {}
        self._stopping = asyncio.Event()
        self._code = 0

    async def run(self, count: int) -> int:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, number)
        await asyncio.gather(*(self._keep(index) for index in range(count)))
        log.info("all processes ended", exit_code=self._code)
        return self._code

    def _stop(self, number: int) -> None:
        self._stopping.set()
        for child in self._children.values():
            if child.returncode is None:
                child.send_signal(number)

    async def _keep(self, index: int) -> None:
        """One child after another with number `index`, until told to stop."""
        environment = {
            **os.environ,
            "TRINE_PROCESS_INDEX": str(index),
            "TRINE_PROCESS_PARENT": str(os.getpid()),
            "PROMETHEUS_MULTIPROC_DIR": self._directory,
        }
        pause_s = _FIRST_PAUSE_S
        while not self._stopping.is_set():
            began = time.monotonic()
            child = await asyncio.create_subprocess_exec(
                # A group of its own, so that Ctrl-C at a terminal reaches it once, through the parent.
                *_this_program(),
                env=environment,
                start_new_session=True,
            )
            self._children[index] = child
            if self._stopping.is_set():
                child.send_signal(signal.SIGTERM)
            code = await child.wait()
            mark_process_dead(child.pid, self._directory)  # type: ignore[no-untyped-call]
            if self._stopping.is_set():
                self._code = self._code or _exit_code(code)
            elif code == self._give_up_on:
                log.error("process refuses to start", index=index, pid=child.pid, exit_code=code)
                self._code = code
                self._stop(signal.SIGTERM)
            else:
                if time.monotonic() - began > _SETTLED_S:
                    pause_s = 0.0
                log.error(
                    "process died, starting it again", index=index, pid=child.pid, exit_code=code, pause_s=pause_s
                )
                await self._wait(pause_s)
                pause_s = min(max(2 * pause_s, _FIRST_PAUSE_S), _LONGEST_PAUSE_S)

    async def _wait(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            pass


def _exit_code(returned: int) -> int:
    """What a child's end means for the parent: one told to stop before it had begun is a clean end."""
    if -returned in (signal.SIGTERM, signal.SIGINT):
        return 0
    return returned if returned >= 0 else 128 - returned


def _this_program() -> list[str]:
    # orig_argv keeps `-m package.module`, which argv does not.
    return [sys.executable, *sys.orig_argv[1:]]
