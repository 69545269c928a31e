"""Trine on one machine, whole: Redis, Kafka, TorchServe with its registrar, workers, gateway, feature store.

    with Stack(StackOptions(releases=Path("releases"))) as stack:
        channel = grpc.insecure_channel(stack.grpc)
        stack.pause("worker")

Used by `trine up`, by `make demo`, by benchmarks and by tests. All of it real processes, listening on loopback only.
"""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from trine_cli.local.errors import LocalStackError
from trine_cli.local.kafka_broker import KafkaBroker
from trine_cli.local.ports import HOST, free_port
from trine_cli.local.redis_server import RedisServer
from trine_cli.local.stack_options import StackOptions, check_servers, chosen_release
from trine_cli.local.stack_services import ARCHIVE, FEATURES, GATEWAY, REGISTRAR, WORKER, Ports, ServiceFactory
from trine_cli.local.supervisor import Component, Supervisor
from trine_cli.local.torchserve import TorchServe

REDIS, KAFKA, TORCHSERVE = "redis", "kafka", "torchserve"


__all__ = [
    "ARCHIVE",
    "FEATURES",
    "GATEWAY",
    "KAFKA",
    "REDIS",
    "REGISTRAR",
    "TORCHSERVE",
    "WORKER",
    "Stack",
    "StackOptions",
]


class Stack:
    """The stack of `options`; starts on entry, stops on exit. Component names are the constants of this module.

    Addresses are known from the start: `grpc` and `rest` of the gateway, `features_grpc` and `features_rest`,
    `redis_url`, `kafka_bootstrap`, `torchserve`, `worker_http`, `archive_http`, `warehouse`. Raises LocalStackError or
    BadInput, and then has left nothing running.
    """

    def __init__(self, options: StackOptions, say: Callable[[str], None] = lambda line: None) -> None:
        self.options = options
        self.release = chosen_release(options)
        self._cleanup = ExitStack()
        self.folder = self._claim_folder()
        self.logs = options.logs or self.folder / "logs"
        self.logs.mkdir(parents=True, exist_ok=True)
        self.ports = Ports(
            grpc=options.grpc_port or free_port(),
            rest=options.rest_port or free_port(),
            features_grpc=options.features_grpc_port or free_port(),
            features_rest=options.features_rest_port or free_port(),
            worker=free_port(),
            archive=free_port(),
            registrar=free_port(),
        )
        self.redis_server: RedisServer | None = None
        self.kafka_broker: KafkaBroker | None = None
        self.model_server: TorchServe | None = None
        self.supervisor = Supervisor(self._components(), say)

    # -- addresses

    @property
    def grpc(self) -> str:
        """HOST:PORT of trine.scoring.v1.ScoringService."""
        return f"{HOST}:{self.ports.grpc}"

    @property
    def rest(self) -> str:
        """URL of the gateway's REST interface, /metrics and health."""
        return f"http://{HOST}:{self.ports.rest}"

    @property
    def features_grpc(self) -> str:
        """HOST:PORT of trine.features.v1.FeatureStoreService."""
        return f"{HOST}:{self.ports.features_grpc}"

    @property
    def features_rest(self) -> str:
        return f"http://{HOST}:{self.ports.features_rest}"

    @property
    def worker_http(self) -> str:
        """URL of the worker's /metrics and health."""
        return f"http://{HOST}:{self.ports.worker}"

    @property
    def archive_http(self) -> str:
        """URL of the archive worker's /metrics and health."""
        return f"http://{HOST}:{self.ports.archive}"

    @property
    def warehouse(self) -> str:
        """Folder or URI of what the archive worker fills."""
        return self.options.warehouse or str((self.folder / "warehouse").resolve())

    @property
    def redis_url(self) -> str:
        return self.options.redis_url or (self.redis_server.url if self.redis_server else "")

    @property
    def kafka_bootstrap(self) -> str:
        return self.options.kafka_bootstrap or (self.kafka_broker.bootstrap if self.kafka_broker else "")

    @property
    def torchserve(self) -> str:
        """HOST:PORT of TorchServe's gRPC inference."""
        return self.options.torchserve or (self.model_server.inference if self.model_server else "")

    def addresses(self) -> dict[str, object]:
        """All addresses, pids and folders, as `trine up --json` prints them."""
        return {
            "grpc": self.grpc,
            "rest": self.rest,
            "features_grpc": self.features_grpc,
            "features_rest": self.features_rest,
            "worker_http": self.worker_http,
            "archive_http": self.archive_http,
            "warehouse": self.warehouse,
            "redis_url": self.redis_url,
            "kafka_bootstrap": self.kafka_bootstrap,
            "torchserve": self.torchserve,
            "torchserve_management": self.model_server.management_url if self.model_server else None,
            "release": self.release,
            "releases": str(self.options.releases.resolve()),
            "data": str(self.folder),
            "logs": str(self.logs.resolve()),
            "pids": {name: c.server.pid for name, c in self.supervisor.components.items()},
        }

    # -- life

    def start(self) -> Self:
        """Start everything and wait until all of it is ready."""
        try:
            check_servers(self.options)
            self.supervisor.start()
        except BaseException:
            self._cleanup.close()
            raise
        return self

    def close(self) -> None:
        """Drain and stop everything, gateway first; remove a temporary data folder except for its logs."""
        try:
            self.supervisor.stop()
        finally:
            self._cleanup.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # -- single components; each stays as it was put until told otherwise

    def stop(self, component: str) -> None:
        """SIGTERM, and wait until it has ended."""
        self.supervisor.stop_one(component)

    def kill(self, component: str) -> None:
        """SIGKILL to it and its children; stays down until `restart`. To see it restarted, kill its pid."""
        self.supervisor.kill_one(component)

    def restart(self, component: str) -> None:
        """Stop it where it lives, start it on the same data and ports, wait until it is ready."""
        self.supervisor.restart_one(component)

    def pause(self, component: str) -> None:
        """SIGSTOP to it and its children."""
        self.supervisor.pause_one(component)

    def resume(self, component: str) -> None:
        """SIGCONT."""
        self.supervisor.resume_one(component)

    def pid(self, component: str) -> int | None:
        """Its process id; None where it does not live."""
        return self.supervisor.components[component].server.pid

    # -- what it is made of

    def _components(self) -> list[Component]:
        found: list[Component] = []
        if self.options.redis_url is None:
            port = self.options.redis_port
            self.redis_server = RedisServer(self.folder / REDIS, port=port, log=self._log(REDIS), name=REDIS)
            found.append(Component(self.redis_server))
        if self.options.kafka_bootstrap is None:
            port = self.options.kafka_port
            broker = KafkaBroker(self.folder / KAFKA, port=port, log=self._log(KAFKA), name=KAFKA)
            self.kafka_broker = broker
            found.append(Component(broker, prepare=lambda: broker.create_topics(self.options.shards)))
        if self.options.torchserve is None:
            self.model_server = TorchServe(self.folder / TORCHSERVE, log=self._log(TORCHSERVE), name=TORCHSERVE)
            found.append(Component(self.model_server))
        make = ServiceFactory(
            releases=self.options.releases.resolve(),
            release=self.release,
            redis_url=self.redis_url,
            kafka_bootstrap=self.kafka_bootstrap,
            shards=self.options.shards,
            ports=self.ports,
            logs=self.logs,
            env=self.options.env,
        )
        if self.model_server is not None:
            found.append(Component(make.registrar(self.model_server), after=(TORCHSERVE,)))
        gateway = make.gateway(self.torchserve, self.options.gateways, (self.folder / "spool").resolve())
        found.append(Component(make.worker(), after=(REDIS, KAFKA)))
        found.append(Component(make.archive(self.warehouse), after=(KAFKA,)))
        found.append(Component(make.feature_store(), after=(REDIS, KAFKA)))
        found.append(Component(gateway, after=(REDIS, KAFKA, TORCHSERVE)))
        return found

    def _log(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    def _claim_folder(self) -> Path:
        """The data folder, locked against a second stack on it."""
        if self.options.data is None:
            folder = Path(tempfile.mkdtemp(prefix="trine-up-"))
            self._cleanup.callback(_remove_data, folder)
            return folder
        self.options.data.mkdir(parents=True, exist_ok=True)
        lock = self._cleanup.enter_context((self.options.data / "lock").open("w"))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._cleanup.close()
            raise LocalStackError(f"--data {self.options.data} is in use by another trine up") from None
        return self.options.data.resolve()


def _remove_data(folder: Path) -> None:
    for part in folder.iterdir():
        if part.name != "logs":
            shutil.rmtree(part, ignore_errors=True)
    if not any((folder / "logs").iterdir() if (folder / "logs").exists() else ()):
        shutil.rmtree(folder, ignore_errors=True)
