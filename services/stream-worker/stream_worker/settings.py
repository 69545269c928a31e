"""Settings of the stream worker, from TRINE_WORKER_* variables."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict
from service_kit.kafka import KafkaSettings

from stream_worker.archive_topics import TopicDeclaration


class WorkerSettings(KafkaSettings):
    """One worker: what it reads, writes and runs."""

    model_config = SettingsConfigDict(env_prefix="TRINE_WORKER_", frozen=True, extra="forbid", env_ignore_empty=True)

    role: Literal["features", "archive"] = "features"
    redis_url: str = "redis://127.0.0.1:6379/0"
    #: Folder of releases; the views of all that go together are kept, first those of the releases that the pointer
    #: names. Where there is no pointer, those of this one, or of the one made last.
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
    #: Prefix of the consumer groups `<prefix>-features`, `<prefix>-rekey` and `<prefix>-archive`.
    group_prefix: str = "trine"
    #: Rows of a micro-batch under load.
    batch_rows: int = Field(default=20_000, ge=100, le=200_000)
    #: How long a micro-batch waits to fill, seconds.
    linger_s: float = Field(default=0.2, gt=0, le=5)
    #: A worker that has not been heard of for so long has lost its shards.
    session_timeout_ms: int = Field(default=10_000, ge=1_000, le=300_000)
    #: Keep a restarted worker's shards for it (stable worker_id, as in a StatefulSet) instead of handing them out.
    static_membership: bool = False
    transaction_timeout_ms: int = Field(default=10_000, ge=1_000, le=900_000)
    #: How often an idle shard says that it is up to date, seconds.
    heartbeat_s: float = Field(default=0.5, gt=0, le=30)
    #: Role archive: folder or URI (s3://bucket/prefix) of the warehouse.
    warehouse: str = ""
    #: Further topics to keep, and how, as JSON: [{"topic": …, "folder": …, "message": …, "id": …, "time": …}].
    archive_topics: tuple[TopicDeclaration, ...] = ()
    #: A chunk is written when it has so many rows, so many bytes in memory, or is so old, seconds.
    archive_rows: int = Field(default=500_000, ge=1, le=50_000_000)
    archive_bytes: int = Field(default=128 * 1024 * 1024, ge=1_000, le=8 * 1024**3)
    archive_age_s: float = Field(default=60.0, gt=0, le=3_600)
    #: How often files are looked at to merge small ones, seconds; 0: never.
    compact_every_s: float = Field(default=300.0, ge=0, le=86_400)
    #: So many small files of a day are merged at once; fewer only when the day has been quiet for so long, seconds.
    compact_files: int = Field(default=8, ge=2, le=1_000)
    compact_quiet_s: float = Field(default=3_600.0, ge=0)
    #: The size to merge up to.
    compact_bytes: int = Field(default=64 * 1024 * 1024, ge=1_000, le=1024**3)
    #: How long files that were merged into another stay for readers that have planned with them, seconds.
    compact_grace_s: float = Field(default=900.0, ge=0)
