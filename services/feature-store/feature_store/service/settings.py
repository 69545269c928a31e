"""Settings of the feature-store service: environment variables TRINE_FEATURES_*."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict
from service_kit.kafka import KafkaSettings


class FeatureServiceSettings(KafkaSettings):
    """The defaults are those of `trine up` on one machine."""

    model_config = SettingsConfigDict(env_prefix="TRINE_FEATURES_")

    redis_url: str = "redis://127.0.0.1:6379/0"
    #: Folder of releases, and the one whose views are shown; without a name those of all releases there.
    releases: Path = Path("releases")
    release: str = ""
    host: str = "0.0.0.0"
    grpc_port: int = Field(50052, ge=0, le=65_535)
    rest_port: int = Field(8081, ge=0, le=65_535)
    #: So that clients meet new processes after scaling; calls in flight are finished.
    max_connection_age_s: int = Field(1_800, ge=1)
    #: Partitions of the topics and shards of the state; chosen once.
    shards: int = Field(64, ge=1, le=4_096)
    redis_timeout_ms: int = Field(1_000, ge=10)
    #: How often lag and health are looked at, seconds.
    refresh_s: float = Field(2.0, gt=0, le=60)
    dead_letters_topic: str = "trine.dead-letters"
