"""What a local stack can be told, and what is checked of it before anything starts."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import redis

from trine_cli.errors import BadInput
from trine_cli.local.errors import LocalStackError
from trine_cli.local.ports import require_free
from trine_cli.local.topics import create_topics


@dataclass(frozen=True)
class StackOptions:
    """What to start and where. Ports that are None are free ones.

    `data`: where Redis, Kafka, the warehouse and the spool keep their data, and `logs` unless it is given; None: a
    temporary folder that is removed at the end except for its logs. `redis_url`, `kafka_bootstrap`, `torchserve`
    (HOST:PORT of its gRPC inference, releases already registered): use servers that run. `warehouse`: archive to
    this folder or URI instead. `env`: more TRINE_* settings of the services.
    """

    releases: Path
    release: str | None = None
    data: Path | None = None
    logs: Path | None = None
    gateways: int = 1
    shards: int = 64
    grpc_port: int | None = None
    rest_port: int | None = None
    features_grpc_port: int | None = None
    features_rest_port: int | None = None
    redis_port: int | None = None
    kafka_port: int | None = None
    redis_url: str | None = None
    kafka_bootstrap: str | None = None
    torchserve: str | None = None
    warehouse: str | None = None
    env: Mapping[str, str] = field(default_factory=dict)


def check_servers(options: StackOptions) -> None:
    """Find out before anything is started that a fixed port is taken or a given server is away.

    Makes the topics of a given Kafka. Raises LocalStackError that names the option.
    """
    for name, port in (
        ("--grpc-port", options.grpc_port),
        ("--rest-port", options.rest_port),
        ("--features-grpc-port", options.features_grpc_port),
        ("--features-rest-port", options.features_rest_port),
        ("--redis-port", options.redis_port),
        ("--kafka-port", options.kafka_port),
    ):
        if port is not None:
            require_free(name, port)
    if options.redis_url:
        try:
            with redis.Redis.from_url(options.redis_url, socket_connect_timeout=3, socket_timeout=3) as client:
                client.ping()
        except (redis.RedisError, ValueError) as error:
            raise LocalStackError(f"--redis-url {options.redis_url}: {error}") from error
    if options.kafka_bootstrap:
        create_topics(options.kafka_bootstrap, options.shards)
    if options.torchserve:
        host, _, port_text = options.torchserve.rpartition(":")
        try:
            socket.create_connection((host, int(port_text)), timeout=3).close()
        except (OSError, ValueError) as error:
            raise LocalStackError(f"--torchserve {options.torchserve}: need HOST:PORT of its gRPC: {error}") from None


def chosen_release(options: StackOptions) -> str:
    """Id of the release to serve: the one asked for, else the one made last. Raises ReleaseError or BadInput."""
    from model_release import Release, ReleaseError, list_request_releases, open_release

    releases = options.releases
    if options.release:
        return open_release(releases / options.release).id
    found: list[Release] = []
    refused = ""
    for path in list_request_releases(releases):
        try:
            found.append(open_release(path))
        except ReleaseError as error:
            refused += f"; {error}"
    if not found:
        raise BadInput(f"--releases {releases}: no release there (make one with `trine train`){refused}")
    return max(found, key=lambda release: release.manifest.created_at).id
