"""HTTP: the routes /livez, /readyz and /metrics, and uvicorn as a part that a service starts and stops.

uvicorn's own signal handling is switched off (`service_kit.run` owns signals), and the listening socket is opened
here with SO_REUSEPORT so that several processes of a service can share a port.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from dataclasses import asdict

import uvicorn
from fastapi import APIRouter, FastAPI, Response
from fastapi.responses import JSONResponse

from service_kit.health import Health
from service_kit.metrics import CONTENT_TYPE, Metrics


def health_router(health: Health, metrics: Metrics) -> APIRouter:
    """Routes /livez, /readyz (200 or 503, with reasons) and /metrics."""
    router = APIRouter(tags=["operations"])

    @router.get("/livez", summary="Is this process worth keeping?")
    async def livez() -> Response:
        report = health.report()
        return JSONResponse({"live": report.live, "dead": report.dead}, 200 if report.live else 503)

    @router.get("/readyz", summary="Can this process answer? Why not, and what is degraded?")
    async def readyz() -> Response:
        report = health.report()
        return JSONResponse(asdict(report), 200 if report.ready else 503)

    @router.get("/metrics", summary="Prometheus metrics")
    async def page() -> Response:
        # In a thread: with several processes it reads a file of each.
        return Response(await asyncio.to_thread(metrics.exposition), media_type=CONTENT_TYPE)

    return router


def health_app(title: str, health: Health, metrics: Metrics) -> FastAPI:
    """The app of a service that has no REST interface of its own."""
    app = FastAPI(title=title, docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(health_router(health, metrics))
    return app


class HttpServer:
    """`await start()`, then `port` is bound and answers; `await stop(grace_s)` finishes requests in flight."""

    def __init__(self, app: FastAPI, port: int, host: str = "0.0.0.0", *, max_header_bytes: int = 16_384) -> None:
        self._address = (host, port)
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            h11_max_incomplete_event_size=max_header_bytes,
        )
        self._server = _Uvicorn(config)
        self._task: asyncio.Task[None] | None = None
        self.port = port

    async def start(self, deadline_s: float = 10.0) -> None:
        """Bind and serve. Raises OSError where the port is taken by somebody else."""
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            listener.bind(self._address)
        except OSError:
            listener.close()
            raise
        listener.setblocking(False)
        self.port = listener.getsockname()[1]
        self._task = asyncio.create_task(self._server.serve([listener]), name=f"http:{self.port}")
        async with asyncio.timeout(deadline_s):
            while not self._server.started:
                if self._task.done():
                    await self._task
                    raise RuntimeError("the HTTP server ended while it started")
                await asyncio.sleep(0.005)

    async def stop(self, grace_s: float = 5.0) -> None:
        """Take no new connection, finish what is in flight within `grace_s` seconds."""
        if self._task is None:
            return
        # uvicorn counts whole seconds.
        self._server.config.timeout_graceful_shutdown = max(1, round(grace_s))
        self._server.should_exit = True
        await self._task


class _Uvicorn(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
