"""One of Trine's own services as a local child process, ready when its /readyz says so."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx
import psutil

from trine_cli.local import loopback
from trine_cli.local.ports import HOST
from trine_cli.local.process import Check
from trine_cli.local.server import Launch, LocalServer


class Service(LocalServer):
    """`python -m module arguments`, told by environment variables.

    `http_port` serves /readyz and /metrics; a service without one gives its own check as `ready`. With `processes`
    above 1 every one of them must listen on `http_port`, since /readyz speaks for the one that answers.
    """

    # A machine with two busy cores takes long to import torch three times over.
    ready_timeout_s = 180.0
    stop_grace_s = 30.0

    def __init__(
        self,
        name: str,
        module: str,
        *,
        log: Path,
        address: str,
        arguments: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        http_port: int | None = None,
        grpc_port: int | None = None,
        processes: int = 1,
        ready: Check | None = None,
    ) -> None:
        super().__init__(name, log)
        self._module, self._arguments, self._env = module, tuple(arguments), dict(env or {})
        self._address, self._http_port, self._grpc_port = address, http_port, grpc_port
        self._processes, self._ready = processes, ready

    @property
    def address(self) -> str:
        return self._address

    @property
    def http_url(self) -> str | None:
        """Where /readyz and /metrics are; None for a service without them."""
        return f"http://{HOST}:{self._http_port}" if self._http_port else None

    def _launch(self) -> Launch:
        # -P: a user's folder may hold a redis.py.
        argv = [sys.executable, "-P", "-m", self._module, *self._arguments]
        ports = [port for port in (self._http_port, self._grpc_port) if port]
        return Launch(argv, env={"PYTHONUNBUFFERED": "1", **self._env}, ports=ports)

    def _missing(self) -> str | None:
        if self.http_url is not None and (missing := not_ready(self.http_url) or self._not_listening()):
            return missing
        return self._ready() if self._ready is not None else None

    def _not_listening(self) -> str | None:
        if self._processes == 1 or self.process is None:
            return None
        listening = 0
        for child in psutil.Process(self.process.pid).children(recursive=True):
            try:
                sockets = child.net_connections("tcp")
            except psutil.Error:
                continue
            listening += any(s.laddr.port == self._http_port and s.status == psutil.CONN_LISTEN for s in sockets)
        return None if listening >= self._processes else f"{listening} of {self._processes} processes listen"


def not_ready(url: str) -> str | None:
    """What /readyz below `url` says is missing; None when it says ready."""
    try:
        response = loopback.get(f"{url}/readyz", 2)
    except httpx.HTTPError as error:
        return f"{url}/readyz: {error}"
    if response.status_code == httpx.codes.OK:
        return None
    try:
        reasons = response.json().get("not_ready", {})
        return "; ".join(f"{part}: {reason}" for part, reason in reasons.items()) or f"/readyz {response.status_code}"
    except ValueError:
        return f"/readyz says {response.status_code}"
