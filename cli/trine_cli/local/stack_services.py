"""Trine's services as a local stack starts them: their modules, settings and ports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trine_cli.local.ports import HOST
from trine_cli.local.service import Service
from trine_cli.local.torchserve import TorchServe

REGISTRAR, WORKER, GATEWAY, FEATURES = "registrar", "worker", "gateway", "feature-store"
ARCHIVE = "archive"


@dataclass(frozen=True)
class Ports:
    """Where each service listens, on loopback."""

    grpc: int
    rest: int
    features_grpc: int
    features_rest: int
    worker: int
    registrar: int
    archive: int


@dataclass(frozen=True)
class ServiceFactory:
    """What all services of one stack are told. `env`: TRINE_* variables that add to or replace what is set here."""

    releases: Path
    release: str
    redis_url: str
    kafka_bootstrap: str
    shards: int
    ports: Ports
    logs: Path
    env: Mapping[str, str]

    def registrar(self, server: TorchServe) -> Service:
        """Keeps `server` serving the folder of releases; ready after its first look at both."""
        settings = {
            "management": server.management_url,
            "inference": server.inference_url,
            "releases": self.releases,
            "redis_url": self.redis_url,
            "host": HOST,
            "http_port": self.ports.registrar,
        }
        return self._service(REGISTRAR, "models.torchserve.registrar", "REGISTRAR", settings, self.ports.registrar)

    def worker(self) -> Service:
        """The stream worker, role features."""
        settings = {
            **self._common(),
            "release": self.release,
            "worker_id": "local-1",
            "metrics_port": self.ports.worker,
        }
        return self._service(WORKER, "stream_worker.main", "WORKER", settings, self.ports.worker)

    def archive(self, warehouse: str) -> Service:
        """The stream worker, role archive."""
        settings = {
            **self._common(),
            "role": "archive",
            "release": self.release,
            "warehouse": warehouse,
            "worker_id": "local-archive",
            "metrics_port": self.ports.archive,
        }
        return self._service(ARCHIVE, "stream_worker.main", "WORKER", settings, self.ports.archive)

    def gateway(self, torchserve: str, processes: int, spool: Path) -> Service:
        """The inference gateway, `processes` of it on the same ports."""
        settings = {
            **self._common(),
            "release": self.release,
            "torchserve_grpc": torchserve,
            "grpc_port": self.ports.grpc,
            "rest_port": self.ports.rest,
            "processes": processes,
            "spool_dir": spool,
        }
        ports = self.ports
        return self._service(GATEWAY, "inference_gateway.main", "GATEWAY", settings, ports.rest, ports.grpc, processes)

    def feature_store(self) -> Service:
        """The feature store's own service."""
        settings = {
            **self._common(),
            "release": self.release,
            "grpc_port": self.ports.features_grpc,
            "rest_port": self.ports.features_rest,
        }
        ports = self.ports
        return self._service(
            FEATURES, "feature_store.service.main", "FEATURES", settings, ports.features_rest, ports.features_grpc
        )

    def _common(self) -> dict[str, object]:
        return {
            "redis_url": self.redis_url,
            "kafka_bootstrap": self.kafka_bootstrap,
            "releases": self.releases,
            "shards": self.shards,
            "host": HOST,
        }

    def _service(
        self,
        name: str,
        module: str,
        prefix: str,
        settings: Mapping[str, object],
        http_port: int,
        grpc_port: int | None = None,
        processes: int = 1,
    ) -> Service:
        own = f"TRINE_{prefix}_"
        env = {own + key.upper(): str(value) for key, value in settings.items()}
        env.update({key: value for key, value in self.env.items() if key.startswith(own)})
        return Service(
            name,
            module,
            log=self.logs / f"{name}.log",
            address=f"{HOST}:{grpc_port or http_port}",
            env=env,
            http_port=http_port,
            grpc_port=grpc_port,
            processes=processes,
        )
