"""Waiting until the warehouse has what Kafka has: for whoever reads right after something happened."""

from __future__ import annotations

import time

from feature_store.definitions import FeaturePlan
from stream_worker.archive_topics import archived_topics

from trine_cli.errors import Unavailable
from trine_cli.kafka_log import KafkaLog

GROUP = "trine-archive"
_LOOK_EVERY_S = 0.2


def await_archived(bootstrap: str, plan: FeaturePlan, timeout_s: float, group: str = GROUP) -> None:
    """Until everything that a plan's topics and the decisions hold is in the warehouse. Raises Unavailable."""
    log, topics = KafkaLog(bootstrap), [t.topic for t in archived_topics(plan)]
    deadline = time.monotonic() + timeout_s
    while left := log.unread(group, topics):
        if time.monotonic() > deadline:
            raise Unavailable(f"{left:,} messages on Kafka at {bootstrap} are not archived after {timeout_s:g} s")
        time.sleep(_LOOK_EVERY_S)
