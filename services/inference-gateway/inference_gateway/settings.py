"""Settings of the gateway: environment variables TRINE_GATEWAY_*."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict
from service_kit.kafka import KafkaSettings


class GatewaySettings(KafkaSettings):
    """The defaults are those of `trine up` on one machine."""

    model_config = SettingsConfigDict(env_prefix="TRINE_GATEWAY_")

    redis_url: str = "redis://127.0.0.1:6379/0"
    #: HOST:PORT of TorchServe's gRPC inference API.
    torchserve_grpc: str = "127.0.0.1:7070"
    #: Folder of releases, and which of them serves where no pointer says so yet (`trine release promote` moves it);
    #: without a name the one made last that can be opened.
    releases: Path = Path("releases")
    release: str = ""
    host: str = "0.0.0.0"
    grpc_port: int = Field(50051, ge=0, le=65_535)
    rest_port: int = Field(8080, ge=0, le=65_535)

    #: Where a client sets no deadline; a client's own is cut to `longest_deadline_ms`.
    deadline_ms: float = Field(100.0, gt=0)
    longest_deadline_ms: float = Field(2_000.0, gt=0)
    #: A message of the bulk call, from its arrival.
    bulk_deadline_ms: float = Field(2_000.0, gt=0)
    #: Messages of one bulk call that are worked on at a time.
    bulk_window: int = Field(4, ge=1, le=64)

    #: Each process keeps its spool in a numbered folder below.
    spool_dir: Path = Path("spool")
    spool_max_bytes: int = Field(1 << 30, ge=1 << 20)
    spool_segment_bytes: int = Field(16 << 20, ge=1 << 16)
    #: How long the end of the process waits for Kafka to take what the spool holds, seconds; what is left is in the
    #: spool's files for the next start. To be long where the files go with the process, as a pod's do.
    spool_drain_s: float = Field(10.0, ge=0, le=3_600)
    #: Partitions of the topics and shards of the state; chosen once.
    shards: int = Field(64, ge=1, le=4_096)
    #: What is kept in memory for Kafka; the rest waits in the spool's files.
    recorder_memory_bytes: int = Field(8 << 20, ge=1 << 12)
    kafka_queue_bytes: int = Field(32 << 20, ge=1 << 16)
    #: How long messages gather for Kafka, which is asked once per partition and time; the spool has them already.
    kafka_linger_ms: int = Field(100, ge=0, le=1_000)
    redis_timeout_ms: int = Field(500, ge=10)
    #: How often the pointer of the batch job that the release's policy names is asked for, and how many keys of its run
    #: a process holds in memory (12 bytes each, three times that while one is loaded); a larger run is not taken.
    batch_scores_refresh_s: float = Field(5.0, gt=0)
    batch_scores_max_rows: int = Field(20_000_000, ge=1)
    #: How often the pointer to the releases in use is read.
    rollout_refresh_s: float = Field(0.5, gt=0, le=10)
    #: How long an answer is kept for repeats of its request.
    ledger_ttl_s: int = Field(3_600, ge=1)
    #: How long the process that began with a request has before another takes over.
    lease_ms: int = Field(1_000, ge=100)

    #: Event times are also judged by the wall clock: at most 5 minutes ahead, 1 day behind.
    live: bool = False

    #: Requests that may wait for a micro-batch; what comes on top is answered by the fallback at once.
    max_waiting: int = Field(4_096, ge=1)
    max_batch: int = Field(256, ge=1, le=4_096)
    feature_lanes: int = Field(2, ge=1, le=16)
    model_lanes: int = Field(3, ge=1, le=16)
    max_message_bytes: int = Field(16 << 20, ge=1 << 16)
    #: So that clients meet new processes after scaling; calls in flight are finished.
    max_connection_age_s: int = Field(1_800, ge=1)
    #: Idle connections are asked for a sign of life.
    keepalive_s: int = Field(60, ge=10)

    @property
    def tuning(self) -> Tuning:
        return Tuning(self.max_waiting, self.max_batch, self.feature_lanes, self.model_lanes)


@dataclass(frozen=True, slots=True)
class Tuning:
    """How the stages run; see the settings of the same names."""

    max_waiting: int
    max_batch: int
    feature_lanes: int
    model_lanes: int
