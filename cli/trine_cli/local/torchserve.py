"""A real TorchServe without models: its store is empty, a registrar (or a test) registers what it should serve.

Java is started here and not through TorchServe's launcher: the launcher keeps one pid file per machine and refuses
a second server. Flags and settings are those that `torchserve --foreground --ncs` would pass on.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import httpx

from models.torchserve import CONFIG, LOG_CONFIG
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
        java_options: tuple[str, ...] = ("-Xms64m", "-Xmx512m", "-XX:+UseSerialGC"),
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
        config = self.folder / "config.properties"
        own = "".join(f"{name}={value}\n" for name, value in self._config(store).items())
        # Of a setting that is there twice Java takes the last.
        config.write_text(f"{CONFIG.read_text()}\n{own}")
        home = _home()
        argv = [
            java_program(),
            f"-Dmodel_server_home={home}",
            f"-Dlog4j.configurationFile={LOG_CONFIG.resolve().as_uri()}",
        ]
        argv += [f"-Djava.io.tmpdir={self._sockets.name}", *self._java_options, "-cp", f"{home}/ts/frontend/*"]
        argv += ["org.pytorch.serve.ModelServer", "--python", sys.executable, "-f", str(config.resolve())]
        argv += ["-s", str(store.resolve()), "-ncs", "--disable-token-auth", "--enable-model-api"]
        env = {
            "LOG_LOCATION": str(logs.resolve()),
            "METRICS_LOCATION": str(logs.resolve()),
            "TMPDIR": self._sockets.name,
            "OMP_NUM_THREADS": "1",
        }
        ports = [self.grpc_port, self._http, self._management, self._metrics, self._grpc_management]
        return Launch(argv, env=env, cwd=self.folder, ports=ports)

    def _config(self, store: Path) -> dict[str, object]:
        return {
            "inference_address": self.inference_url,
            "management_address": self.management_url,
            "metrics_address": f"http://{HOST}:{self._metrics}",
            "grpc_inference_address": HOST,
            "grpc_management_address": HOST,
            "grpc_inference_port": self.grpc_port,
            "grpc_management_port": self._grpc_management,
            "model_store": store.resolve(),
            **self._settings,
        }

    def _missing(self) -> str | None:
        for url in (f"{self.inference_url}/ping", f"{self.management_url}/models"):
            try:
                status = httpx.get(url, timeout=2).status_code
            except httpx.HTTPError as error:
                return f"{url}: {error}"
            if status != httpx.codes.OK:
                return f"{url} says {status}"
        return None


def _home() -> Path:
    """The folder that holds TorchServe's `ts` package; asked of the distribution, since a user may have a ts.py."""
    try:
        return Path(str(distribution("torchserve").locate_file("")))
    except PackageNotFoundError:
        raise MissingProgram("torchserve is not installed here: run `make setup`") from None
