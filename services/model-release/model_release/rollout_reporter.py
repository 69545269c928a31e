"""A thread that says again and again what this process has loaded, until it ends; for registrar and worker."""

from __future__ import annotations

import threading
from collections.abc import Callable

import redis
from service_kit.logs import get_logger

from model_release.rollout_store import REPORT_EVERY_S, ProcessReport, RolloutStore, rollout_client

log = get_logger(__name__)


def keep_reporting(url: str, report: Callable[[], ProcessReport], stop: threading.Event) -> None:
    """Until `stop`; then the report is withdrawn. A Redis that is away is tried again; the report expires meanwhile."""
    with rollout_client(url) as client:
        store = RolloutStore(client)
        last, told = report(), ""
        while True:
            try:
                last = report()
                store.report(last)
                told = ""
            except (redis.RedisError, OSError) as error:
                if str(error) != told:
                    told = str(error)
                    log.warning("not reported to Redis", reason=told)
            if stop.wait(REPORT_EVERY_S):
                break
        try:
            store.withdraw(last.kind, last.name)
        except (redis.RedisError, OSError):
            log.info("report not withdrawn, it expires")
