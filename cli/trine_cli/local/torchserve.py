"""A real TorchServe without models: its store is empty, a registrar (or a test) registers what it should serve."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import httpx

from models.torchserve.server import JAVA_OPTIONS, NotInstalled, addresses, command, environment, write_config
from trine_cli.local import loopback
from trine_cli.local.errors import MissingProgram
from trine_cli.local.java import java_program
from trine_cli.local.ports import HOST, free_ports
from trine_cli.local.server import Launch, LocalServer


class TorchServe(LocalServer):
    """TorchServe with private folders below `folder`; `settings` are added to (or replace) its config.properties.

    `inference` (gRPC, HOST:PORT), `inference_url`, `management_url` and `metrics_url` say where it listens, all on
    loopback. A restart forgets registered models.
    """

    ready_timeout_s = 90.0

    def __init__(
        self,
        folder: Path,
        *,
        grpc_port: int | None = None,
        log: Path | None = None,
        settings: Mapping[str, object] | None = None,
        java_options: tuple[str, ...] = JAVA_OPTIONS,
        name: str = "torchserve",
    ) -> None:
        super().__init__(name, log or folder / "torchserve.log")
        self.folder = folder
        free = free_ports(5)
        self.grpc_port = grpc_port or free[0]
        self._http, self._management, self._metrics, self._grpc_management = free[1:]
        self._settings, self._java_options = dict(settings or {}), java_options
        # Its workers listen on unix sockets here, whose paths may have 107 bytes at most: not below `folder`.
        self._sockets: tempfile.TemporaryDirectory[str] | None = None

    @property
    def inference(self) -> str:
        return f"{HOST}:{self.grpc_port}"

    @property
    def inference_url(self) -> str:
        return f"http://{HOST}:{self._http}"

    @property
    def management_url(self) -> str:
        return f"http://{HOST}:{self._management}"

    @property
    def metrics_url(self) -> str:
        return f"http://{HOST}:{self._metrics}/metrics"

    @property
    def address(self) -> str:
        return self.inference

    def _launch(self) -> Launch:
        store, logs = self.folder / "model-store", self.folder / "logs"
        for folder in (store, logs):
            folder.mkdir(parents=True, exist_ok=True)
        if self._sockets is None:
            self._sockets = tempfile.TemporaryDirectory(prefix="trine-ts-", ignore_cleanup_errors=True)
        config, temporary = self.folder / "config.properties", Path(self._sockets.name)
        write_config(config, self._config(store))
        try:
            argv = command(java_program(), config, store, temporary, self._java_options)
        except NotInstalled as error:
            raise MissingProgram(str(error)) from error
        ports = [self.grpc_port, self._http, self._management, self._metrics, self._grpc_management]
        return Launch(argv, env=environment(logs, temporary), cwd=self.folder, ports=ports)

    def _config(self, store: Path) -> dict[str, object]:
        own = addresses(
            host=HOST, http=self._http, grpc=self.grpc_port, loopback=HOST, management=self._management,
            metrics=self._metrics, grpc_management=self._grpc_management, store=store,
        )  # fmt: skip
        return own | self._settings

    def _missing(self) -> str | None:
        for url in (f"{self.inference_url}/ping", f"{self.management_url}/models"):
            try:
                status = loopback.get(url, 2).status_code
            except httpx.HTTPError as error:
                return f"{url}: {error}"
            if status != httpx.codes.OK:
                return f"{url} says {status}"
        return None
