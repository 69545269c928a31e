"""What TorchServe's image runs: the server, without models; or with the argument `registrar` the registrar beside it.

    python -m models.torchserve.container                       # the server: HTTP 8080, gRPC 7070
    python -m models.torchserve.container registrar --releases /releases --management … --inference …

Either takes the place of this process, so that a container's signals reach it. Everything that the server writes is
below one folder of /tmp, which a container that is started again finds and replaces.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import NoReturn

from models.torchserve.server import addresses, command, environment, write_config

_HTTP, _GRPC = 8080, 7070
_MANAGEMENT, _METRICS, _GRPC_MANAGEMENT = 8081, 8082, 7071


def main(arguments: list[str]) -> NoReturn:
    """Never returns."""
    if arguments[:1] == ["registrar"]:
        os.execv(sys.executable, [sys.executable, "-m", "models.torchserve.registrar", *arguments[1:]])
    if arguments:
        sys.exit(f"torchserve: {arguments[0]!r}: must be `registrar`, or nothing for the server")
    serve(Path(tempfile.gettempdir()) / "torchserve")


def serve(folder: Path) -> NoReturn:
    """The server with everything that it writes in `folder`, which is made anew."""
    shutil.rmtree(folder, ignore_errors=True)
    store, logs, temporary = folder / "store", folder / "logs", folder / "tmp"
    for one in (store, logs, temporary):
        one.mkdir(parents=True)
    java = shutil.which("java")
    if java is None:
        sys.exit("torchserve: no java on PATH")
    config = folder / "config.properties"
    own = addresses(
        host="0.0.0.0", http=_HTTP, grpc=_GRPC, loopback="127.0.0.1",
        management=_MANAGEMENT, metrics=_METRICS, grpc_management=_GRPC_MANAGEMENT, store=store,
    )  # fmt: skip
    write_config(config, own)
    os.chdir(folder)
    os.execve(java, command(java, config, store, temporary), os.environ | environment(logs, temporary))


if __name__ == "__main__":
    main(sys.argv[1:])
