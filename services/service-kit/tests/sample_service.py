"""A small service built on the kit, run by the tests as a real process (`python sample_service.py`)."""

from __future__ import annotations

import asyncio
import os
import sys
import threading

from fastapi import FastAPI
from pydantic_settings import SettingsConfigDict
from service_kit.grpc_server import GrpcServer
from service_kit.http_server import HttpServer, health_router
from service_kit.logs import get_logger
from service_kit.run import Lifecycle, StartRefused, run
from service_kit.settings import ServiceSettings


class Settings(ServiceSettings):
    model_config = SettingsConfigDict(env_prefix="TRINE_SAMPLE_")

    http_port: int
    grpc_port: int
    refuse: bool = False
    hang_on_stop: bool = False


async def start(life: Lifecycle, settings: Settings) -> None:
    log = get_logger("sample")
    if settings.refuse:
        raise StartRefused("redis_url: evicts keys")
    served = life.metrics.counter("requests_total", "Requests served")
    app = FastAPI()
    app.include_router(health_router(life.health, life.metrics))

    @app.get("/job")
    async def work(seconds: float = 0.0) -> int:
        served.inc()
        log.info("working", transaction_id="t-1")
        await asyncio.sleep(seconds)
        return os.getpid()

    @app.get("/fail")
    async def fail() -> None:
        life.task("broken", broken())

    async def broken() -> None:
        raise ValueError("no luck")

    async def first_started_last_stopped() -> None:
        log.info("stopped", part="base")

    life.on_stop("base", first_started_last_stopped)

    def loop(stop: threading.Event) -> None:
        stop.wait()
        log.info("stopped", part="thread")

    life.thread("loop", loop)
    if settings.hang_on_stop:
        life.on_stop("hang", lambda: asyncio.sleep(60), deadline_s=30)
    grpc = GrpcServer({}, life.health, settings.grpc_port, "127.0.0.1", max_connection_age_s=1_800)
    await grpc.start()
    life.on_stop("grpc", grpc.stop)
    http = HttpServer(app, settings.http_port, "127.0.0.1")
    await http.start()
    life.on_stop("http", http.stop, deadline_s=10)


if __name__ == "__main__":
    sys.exit(run("sample", start, Settings))
