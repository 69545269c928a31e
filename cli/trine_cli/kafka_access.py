"""What brokers ask of commands that talk to the user's own Kafka: TRINE_KAFKA_* variables, as the services have."""

from __future__ import annotations

from pydantic_settings import SettingsConfigDict
from service_kit.kafka import KafkaSettings


class KafkaAccess(KafkaSettings):
    """Made without `load`: other commands' TRINE_* variables are none of its business."""

    model_config = SettingsConfigDict(env_prefix="TRINE_", extra="ignore")
