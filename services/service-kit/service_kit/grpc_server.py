"""gRPC: a grpc.aio server with standard health (from `Health`) and reflection, several processes on one port."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from service_kit.health import Health, HealthReport

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
HEALTH_SERVICE = "grpc.health.v1.Health"

AddToServer = Callable[[grpc.aio.Server], None]


class GrpcServer:
    """`services`: full service name → what adds its servicer, e.g.
    `{"trine.scoring.v1.ScoringService": partial(add_ScoringServiceServicer_to_server, servicer)}`.

    A connection older than `max_connection_age_s` seconds, give or take a tenth, ends once its calls are finished, so
    that clients meet servers that came since; one that is idle for `keepalive_s` is asked for a sign of life.
    """

    def __init__(
        self,
        services: Mapping[str, AddToServer],
        health: Health,
        port: int,
        host: str = "0.0.0.0",
        *,
        max_connection_age_s: int,
        keepalive_s: int = 60,
        interceptors: Sequence[grpc.aio.ServerInterceptor[Any, Any]] = (),
        max_message_bytes: int = 4 * 1024 * 1024,
        max_concurrent_rpcs: int | None = None,
    ) -> None:
        self._server = grpc.aio.server(
            interceptors=list(interceptors),
            maximum_concurrent_rpcs=max_concurrent_rpcs,
            options=[
                ("grpc.so_reuseport", 1),
                ("grpc.max_receive_message_length", max_message_bytes),
                # Clients that ping to keep a connection are welcome.
                ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
                ("grpc.max_connection_age_ms", max_connection_age_s * 1_000),
                ("grpc.keepalive_time_ms", keepalive_s * 1_000),
                ("grpc.keepalive_timeout_ms", 10_000),
            ],
        )
        for add in services.values():
            add(self._server)
        names = ("", *services)
        health_pb2_grpc.add_HealthServicer_to_server(HealthServicer(health, names), self._server)
        reflection.enable_server_reflection([*services, HEALTH_SERVICE, reflection.SERVICE_NAME], self._server)
        self._address = f"{host}:{port}"
        self.port = port

    async def start(self) -> None:
        """Bind and serve. Raises RuntimeError where the port is taken by somebody else."""
        self.port = self._server.add_insecure_port(self._address)
        await self._server.start()

    async def stop(self, grace_s: float = 5.0) -> None:
        """Take no new call, finish those in flight within `grace_s` seconds, cancel the rest."""
        await self._server.stop(grace_s)


class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc] # its stubs are untyped
    """grpc.health.v1 over `Health`: readiness, for the server ("") and for each of its services."""

    def __init__(self, health: Health, names: Sequence[str]) -> None:
        self._health = health
        self._names = frozenset(names)

    async def Check(
        self,
        request: health_pb2.HealthCheckRequest,
        context: grpc.aio.ServicerContext[health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse],
    ) -> health_pb2.HealthCheckResponse:
        if request.service not in self._names:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"service: {request.service!r} is not one of this server's")
        return self._now(request.service)

    async def Watch(
        self,
        request: health_pb2.HealthCheckRequest,
        context: grpc.aio.ServicerContext[health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse],
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        loop, changed = asyncio.get_running_loop(), asyncio.Event()

        def notice(_: HealthReport) -> None:
            loop.call_soon_threadsafe(changed.set)

        end = self._health.listen(notice)
        try:
            last = None
            while True:
                changed.clear()
                now = self._now(request.service)
                if now != last:
                    yield now
                last = now
                await changed.wait()
        finally:
            end()

    def _now(self, service: str) -> health_pb2.HealthCheckResponse:
        if service not in self._names:
            return health_pb2.HealthCheckResponse(status=_UNKNOWN)
        return health_pb2.HealthCheckResponse(status=_SERVING if self._health.ready else _NOT_SERVING)
