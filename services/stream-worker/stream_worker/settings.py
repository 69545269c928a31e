"""Settings of the stream worker, from TRINE_WORKER_* variables."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict
from service_kit.settings import ServiceSettings


class WorkerSettings(ServiceSettings):
    """One worker: what it reads, writes and runs."""

    model_config = SettingsConfigDict(env_prefix="TRINE_WORKER_", frozen=True, extra="forbid", env_ignore_empty=True)

    role: Literal["features"] = "features"
    redis_url: str = "redis://127.0.0.1:6379/0"
    kafka_bootstrap: str = "127.0.0.1:9092"
    #: Folder of releases, and the one whose feature plan is run.
    releases: Path | None = None
    release: str = ""
    #: A feature plan as JSON, instead of a release's.
    plan_file: Path | None = None
    #: Stable name of this worker, one of its kind at a time: its Kafka transactions go by it.
    worker_id: str = Field(default_factory=socket.gethostname, pattern=r"^[A-Za-z0-9._-]{1,64}$")
    host: str = "0.0.0.0"
    #: Port of /livez, /readyz and /metrics; 0 takes a free one.
    metrics_port: int = Field(default=8090, ge=0, le=65_535)
    #: Partitions of every keyed topic; chosen once.
    shards: int = Field(default=64, ge=1, le=4096)
    #: Prefix of the consumer groups `<prefix>-features` and `<prefix>-rekey`.
    group_prefix: str = "trine"
    #: Rows of a micro-batch under load.
    batch_rows: int = Field(default=20_000, ge=100, le=200_000)
    #: How long a micro-batch waits to fill, seconds.
    linger_s: float = Field(default=0.05, gt=0, le=5)
    #: A worker that has not been heard of for so long has lost its shards.
    session_timeout_ms: int = Field(default=10_000, ge=1_000, le=300_000)
    #: Keep a restarted worker's shards for it (stable worker_id, as in a StatefulSet) instead of handing them out.
    static_membership: bool = False
    transaction_timeout_ms: int = Field(default=10_000, ge=1_000, le=900_000)
    #: How often an idle shard says that it is up to date, seconds.
    heartbeat_s: float = Field(default=0.5, gt=0, le=30)
