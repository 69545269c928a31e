"""The rival: what one writes first. A loop that takes an event, reads two states, changes them and writes them back.

Same topic, same Redis, same windows. It keeps customer and terminal states as pickled lists, uses one round trip to
read and one to write for each event, and commits its Kafka offset now and then: no ids, no labels, no fencing, so a
crash counts events twice or not at all.
"""

from __future__ import annotations

import bisect
import pickle
import time
from typing import cast

import redis
from confluent_kafka import Consumer
from trine.events.v1.events_pb2 import Transaction

from models.fraud.features import TRANSACTIONS

_RETENTION_US = 38 * 86_400_000_000
_COMMIT_EVERY = 1_000


def events_per_second(bootstrap: str, redis_url: str, group: str, count: int) -> float:
    """Absorb `count` events of the preloaded topic; how many a second, from the first to the last."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": group,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
        }
    )
    consumer.subscribe([TRANSACTIONS.topic])
    began, done = 0.0, 0
    with redis.Redis.from_url(redis_url) as store:
        while done < count:
            message = consumer.poll(1.0)
            if message is None or message.error():
                continue
            began = began or time.perf_counter()
            _absorb(store, Transaction.FromString(message.value() or b""))
            done += 1
            if done % _COMMIT_EVERY == 0:
                consumer.commit(asynchronous=True)
    seconds = time.perf_counter() - began
    consumer.close()
    return count / seconds


def _absorb(store: redis.Redis, event: Transaction) -> None:
    names = [f"naive:customer:{event.customer_id}", f"naive:terminal:{event.terminal_id}"]
    found = cast(list[bytes | None], store.mget(names))
    changed = {}
    for name, raw in zip(names, found, strict=True):
        state: list[tuple[int, int]] = pickle.loads(raw) if raw else []
        bisect.insort(state, (event.event_time_us, event.amount))
        oldest = state[-1][0] - _RETENTION_US
        changed[name] = pickle.dumps(state[bisect.bisect_right(state, (oldest, 0)) :])
    store.mset(changed)
