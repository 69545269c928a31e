"""Half-way through the day TorchServe is stopped (SIGSTOP: it holds its connections and says nothing), then goes on."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

import httpx

from trine_cli.demo.day import Sending
from trine_cli.local import loopback
from trine_cli.local.stack import TORCHSERVE, Stack

_LOOK_EVERY_S = 0.2
_PATIENCE_S = 180.0


@dataclass(slots=True)
class Outage:
    """Seconds since the first request: when it was stopped, went on, and when the gateway used it again."""

    stopped_s: float = float("nan")
    resumed_s: float = float("nan")
    back_s: float = float("nan")


class OutageMaker:
    """Waits in the background for the middle of the day, then does it. `outage` says what happened so far."""

    def __init__(self, stack: Stack, sending: Sending, total: int, seconds: float) -> None:
        self.outage = Outage()
        self._stack, self._sending, self._half, self._seconds = stack, sending, total // 2, seconds
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="outage", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def join(self) -> Outage:
        """Wait until the model is back. Raises what went wrong."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self.outage

    @property
    def words(self) -> str:
        """What is going on, for the live table."""
        if self.outage.stopped_s != self.outage.stopped_s:
            return "running"
        if self.outage.resumed_s != self.outage.resumed_s:
            return "stopped"
        return "on again" if self.outage.back_s != self.outage.back_s else "back"

    def _run(self) -> None:
        try:
            while self._sending.settled < self._half:
                if self._sending.finished:
                    return
                time.sleep(_LOOK_EVERY_S)
            self._stack.pause(TORCHSERVE)
            self.outage.stopped_s = self._now()
            try:
                time.sleep(self._seconds)
            finally:
                self._stack.resume(TORCHSERVE)
            self.outage.resumed_s = self._now()
            self._await_model()
            self.outage.back_s = self._now()
        except BaseException as error:  # shown by `join`
            self._error = error

    def _await_model(self) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while "model" in degraded(self._stack.rest):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the gateway does not use TorchServe again after {_PATIENCE_S:g} s")
            time.sleep(_LOOK_EVERY_S)

    def _now(self) -> float:
        return self._sending.now_s


def degraded(url: str) -> dict[str, str]:
    """Parts of a service that are not what they should be, and why; `url` is its REST address."""
    try:
        health = loopback.get(f"{url}/readyz", 2).json()
    except (httpx.HTTPError, ValueError) as error:
        return {"readyz": str(error)}
    return {**health.get("not_ready", {}), **health.get("degraded", {})}
