"""Keeps TorchServe serving the releases found in a folder: run beside the server as a long-lived process.

    python -m models.torchserve.registrar --releases DIR --management http://127.0.0.1:PORT --inference http://HOST:PORT

Every second: releases that are new are verified (`open_release`), registered through the management interface (on
loopback only) and asked for their golden rows, which must come back to the bit. A release that fails any of that is
taken off again, with the reason in the log, in /readyz and in a metric, and tried again only when its files change
(a server that could not start its workers: after a pause that grows). The others are not touched. A server that
restarted knows no models and gets them again; a release that left the folder is unregistered.
"""

from __future__ import annotations

import asyncio
import ipaddress
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from model_release import ReleaseError, files_of, list_request_releases, open_release
from model_release.manifest import is_release_id
from model_release.rollout_reporter import keep_reporting
from model_release.rollout_store import REGISTRAR, ProcessReport, process_name
from pydantic import Field
from pydantic_settings import SettingsConfigDict
from service_kit.health import Health
from service_kit.http_server import HttpServer, health_app
from service_kit.logs import get_logger
from service_kit.metrics import Metrics
from service_kit.run import Lifecycle, StartRefused, run
from service_kit.settings import ServiceSettings

from models.torchserve.management import GoldenMismatch, NotRegistered, ServerUnreachable, TorchServeAdmin

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 5.0, 300.0
_SERVER = "torchserve"

log = get_logger(__name__)


class Settings(ServiceSettings):
    """TRINE_REGISTRAR_…, or the same as arguments."""

    model_config = SettingsConfigDict(env_prefix="TRINE_REGISTRAR_", cli_parse_args=True, cli_kebab_case=True)

    releases: Path = Field(description="folder of releases")
    management: str = Field(description="URL of TorchServe's management interface; loopback only")
    inference: str = Field(description="URL of TorchServe's HTTP inference interface")
    workers: int = Field(default=1, ge=1, description="worker processes of each release")
    interval_s: float = Field(default=1.0, gt=0, description="seconds between two looks")
    host: str = Field(default="0.0.0.0", description="address of the HTTP port")
    redis_url: str = Field(default="", description="where to report what is loaded, for promotions; nowhere if empty")
    http_port: int | None = Field(default=None, description="port for /livez, /readyz, /metrics; none where not given")


@dataclass(frozen=True, slots=True)
class _Refusal:
    #: Names, sizes and times of the files that were refused.
    files: tuple[tuple[str, int, int], ...]
    #: When to try again although nothing changed, monotonic seconds; None: never.
    again_at: float | None
    pause_s: float


class Registrar:
    """`look` once brings the server in line with the folder."""

    def __init__(self, releases: Path, server: TorchServeAdmin, health: Health, metrics: Metrics) -> None:
        self._releases, self._server, self._health = releases, server, health
        self.loaded: set[str] = set()
        self.reasons: dict[str, str] = {}
        self._refused: dict[str, _Refusal] = {}
        self._loaded_gauge = metrics.gauge("loaded_releases_state", "Releases that are served and verified")
        self._refused_gauge = metrics.gauge("refused_releases_state", "Releases in the folder that are refused")

    async def look(self) -> None:
        """Never raises for what is wrong with the server or a release; both are reported."""
        try:
            await self._align()
            self._health.restore(_SERVER)
            self._health.unblock(_SERVER)
        except ServerUnreachable as error:
            self._health.degrade(_SERVER, str(error))
        self._loaded_gauge.set(len(self.loaded))
        self._refused_gauge.set(len(self._refused))

    async def _align(self) -> None:
        served = await self._server.models()
        present = {path.name: path for path in await asyncio.to_thread(list_request_releases, self._releases)}
        lost = self.loaded - served
        if lost:
            log.warning("the server lost releases, registering them again", releases=sorted(lost))
        self.loaded &= served
        for name in [name for name in self._refused if name not in present]:
            self._forget(name)
        # What was served a moment ago comes first: clients wait for it.
        for name in sorted(present, key=lambda name: (name not in lost, name)):
            if name not in self.loaded:
                await self._load(name, present[name], name in served)
        # An empty folder is more likely one that is not mounted than the wish to serve nothing.
        for name in served - present.keys() if present else ():
            if is_release_id(name):
                log.info("release left the folder, unregistering it", release=name)
                self.loaded.discard(name)
                await self._server.unregister(name)

    async def _load(self, name: str, folder: Path, registered: bool) -> None:
        files = await asyncio.to_thread(files_of, folder)
        before = self._refused.get(name)
        if before and before.files == files and (before.again_at is None or time.monotonic() < before.again_at):
            return
        began, pause_s = time.monotonic(), 0.0
        try:
            release = await asyncio.to_thread(open_release, folder)
            if not registered:
                await self._server.register(release)
            await self._server.check(release)
        except (ReleaseError, GoldenMismatch) as error:
            reason = str(error)
        except NotRegistered as error:
            # It may have been the machine's fault, so it is tried again.
            reason = str(error)
            pause_s = min(2 * before.pause_s, _LONGEST_PAUSE_S) if before and before.pause_s else _FIRST_PAUSE_S
        else:
            self._forget(name)
            self.loaded.add(name)
            log.info("release loaded", release=name, seconds=round(time.monotonic() - began, 1))
            return
        log.error("release refused", release=name, reason=reason, again_in_s=pause_s or None)
        self._refused[name] = _Refusal(files, time.monotonic() + pause_s if pause_s else None, pause_s)
        self._health.degrade(name, reason)
        self.reasons[name] = reason
        await self._server.unregister(name)

    def _forget(self, name: str) -> None:
        self._refused.pop(name, None)
        self.reasons.pop(name, None)
        self._health.restore(name)


def report_of(registrar: Registrar) -> ProcessReport:
    """What is loaded, and what is refused with the reason; read by another thread, so from copies."""
    releases = {**dict.fromkeys(list(registrar.loaded), ""), **dict(registrar.reasons)}
    return ProcessReport(REGISTRAR, process_name(), releases=releases)


async def start(life: Lifecycle, settings: Settings) -> None:
    _refuse_open_management(settings.management)
    server = TorchServeAdmin(settings.management, settings.inference, settings.workers)
    life.on_stop("connections", server.close)
    life.health.block(_SERVER, "not reached yet")
    registrar = Registrar(settings.releases, server, life.health, life.metrics)

    async def look_for_ever() -> None:
        while True:
            await registrar.look()
            await asyncio.sleep(settings.interval_s)

    if settings.redis_url:
        life.thread("report", lambda stop: keep_reporting(settings.redis_url, lambda: report_of(registrar), stop), 8)
    life.task("look", look_for_ever())
    if settings.http_port is not None:
        http = HttpServer(
            health_app("TorchServe registrar", life.health, life.metrics), settings.http_port, settings.host
        )
        await http.start()
        life.on_stop("http", http.stop)


def _refuse_open_management(url: str) -> None:
    """Whoever reaches the management interface can run any code in the server. Raises StartRefused."""
    host = urlsplit(url).hostname or ""
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise StartRefused(f"management: {url!r} is not a URL on loopback, e.g. http://127.0.0.1:8081")


if __name__ == "__main__":
    sys.exit(run("registrar", start, Settings))
