"""`trine topics`: Trine's topics on a Kafka of one's own."""

from __future__ import annotations

from typing import Annotated

import typer
from pydantic import Field
from pydantic_settings import SettingsConfigDict
from service_kit.kafka import KafkaSettings
from service_kit.settings import load

from trine_cli.local.topics import TOPICS, create_topics
from trine_cli.output import Json, Output

app = typer.Typer(help="Make the topics on a Kafka of your own.")


class TopicsSettings(KafkaSettings):
    """TRINE_TOPICS_*, for brokers that ask for TLS or SASL, and where there are no options (a Job)."""

    model_config = SettingsConfigDict(env_prefix="TRINE_TOPICS_")

    shards: int = Field(64, ge=1, le=4_096)
    #: Copies of each partition; -1: as many as the broker makes by itself.
    replication: int = Field(-1, ge=-1, le=32_767)
    #: How long the broker may be away at first.
    wait_s: float = Field(5.0, gt=0, le=3_600)


@app.callback()
def _group() -> None:
    """So that `create` is a word of its own."""


@app.command()
def create(
    kafka_bootstrap: Annotated[str | None, typer.Option(help="HOST:PORT of a broker.")] = None,
    shards: Annotated[int | None, typer.Option(min=1, max=4096, help="Partitions of each; chosen once.")] = None,
    replication: Annotated[int | None, typer.Option(help="Copies of each partition.")] = None,
    wait_s: Annotated[float | None, typer.Option(help="How long the broker may be away at first.")] = None,
    json: Json = False,
) -> None:
    """Make the topics that are missing; refuse those with another number of partitions.

    What is not given is taken from TRINE_TOPICS_… (`TRINE_TOPICS_KAFKA_SASL_PASSWORD` and so on).
    """
    given = {"kafka_bootstrap": kafka_bootstrap, "shards": shards, "replication": replication, "wait_s": wait_s}
    settings = load(TopicsSettings).model_copy(update={k: v for k, v in given.items() if v is not None})
    create_topics(
        settings.kafka_bootstrap,
        settings.shards,
        client=settings.kafka_client,
        replication=settings.replication,
        wait_s=settings.wait_s,
    )
    output = Output(json)
    output.table("Topics", ["topic", "partitions"], [[name, str(settings.shards)] for name in TOPICS])
    output.result({"topics": list(TOPICS), "shards": settings.shards})
