"""How TorchServe is started, on one machine and in a container: Java itself, in the foreground, without models.

TorchServe's own launcher is left out: it keeps one pid file per machine, and is a process more between a signal and
the server. Flags and settings are those that `torchserve --foreground --ncs` would pass on.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from models.torchserve import CONFIG, LOG_CONFIG

#: Enough for the frontend, which holds requests and no models.
JAVA_OPTIONS = ("-Xms64m", "-Xmx512m", "-XX:+UseSerialGC")


class NotInstalled(Exception):
    """There is no torchserve in this environment."""


def addresses(
    *, host: str, http: int, grpc: int, loopback: str, management: int, metrics: int, grpc_management: int, store: Path
) -> dict[str, object]:
    """Addresses and store, for `write_config`: inference on `host`, all that can change the server on `loopback`."""
    return {
        "inference_address": f"http://{host}:{http}",
        "management_address": f"http://{loopback}:{management}",
        "metrics_address": f"http://{loopback}:{metrics}",
        "grpc_inference_address": host,
        "grpc_management_address": loopback,
        "grpc_inference_port": grpc,
        "grpc_management_port": grpc_management,
        "model_store": store.resolve(),
    }


def write_config(file: Path, own: Mapping[str, object]) -> None:
    """config.properties of this folder with `own` on top: of a setting that is there twice Java takes the last."""
    lines = "".join(f"{name}={value}\n" for name, value in own.items())
    file.write_text(f"{CONFIG.read_text()}\n{lines}")


def command(
    java: str, config: Path, store: Path, temporary: Path, java_options: Sequence[str] = JAVA_OPTIONS
) -> list[str]:
    """The command line. `temporary`: workers listen on unix sockets there, whose paths may have 107 bytes at most.

    Raises NotInstalled.
    """
    home = _home()
    return [
        java,
        f"-Dmodel_server_home={home}",
        f"-Dlog4j.configurationFile={LOG_CONFIG.resolve().as_uri()}",
        f"-Djava.io.tmpdir={temporary}",
        *java_options,
        *("-cp", f"{home}/ts/frontend/*", "org.pytorch.serve.ModelServer"),
        *("--python", sys.executable, "-f", str(config.resolve()), "-s", str(store.resolve())),
        *("-ncs", "--disable-token-auth", "--enable-model-api"),
    ]


def environment(logs: Path, temporary: Path) -> dict[str, str]:
    """What the server and its workers are told beside their command line."""
    return {
        "LOG_LOCATION": str(logs.resolve()),
        "METRICS_LOCATION": str(logs.resolve()),
        "TMPDIR": str(temporary),
        "OMP_NUM_THREADS": "1",
    }


def _home() -> Path:
    """The folder that holds TorchServe's `ts` package; asked of the distribution, since a user may have a ts.py."""
    try:
        return Path(str(distribution("torchserve").locate_file("")))
    except PackageNotFoundError:
        raise NotInstalled("torchserve is not installed here: run `make setup`") from None
