"""A topic full of card transactions and one of fraud reports, the same for every side of the benchmark."""

from __future__ import annotations

import numpy as np
from confluent_kafka import Producer
from feature_store.sharding import shard_of
from trine.events.v1.events_pb2 import FraudReport, Transaction

from models.fraud.features import FRAUD_REPORTS, TRANSACTIONS

CUSTOMERS, TERMINALS, DAYS = 5_000, 10_000, 60
START_US, DAY_US = 1_522_540_800_000_000, 86_400_000_000


def preload(bootstrap: str, count: int, shards: int) -> int:
    """Send `count` transactions of 60 days in the order of their time, and a report on each hundredth a week later.

    Returns the number of reports. A customer has a transaction every 7 hours or so at a million; the fraud handbook's
    has one every 14.
    """
    rng = np.random.default_rng(1)
    times = (np.sort(rng.integers(0, DAYS * DAY_US, count)) + START_US).tolist()
    customers, terminals = rng.integers(0, CUSTOMERS, count).tolist(), rng.integers(0, TERMINALS, count).tolist()
    amounts = rng.integers(100, 30_000, count).tolist()
    producer = Producer(
        {
            "bootstrap.servers": bootstrap,
            "enable.idempotence": True,
            "linger.ms": 50,
            "batch.size": 1_000_000,
            "queue.buffering.max.messages": 1_000_000,
        }
    )
    reports = 0
    for i, (at, customer, terminal, amount) in enumerate(zip(times, customers, terminals, amounts, strict=True)):
        key, where = str(customer), str(terminal)
        transaction = Transaction(
            transaction_id=str(i), event_time_us=at, customer_id=key, terminal_id=where, amount=amount, currency="EUR"
        )
        producer.produce(TRANSACTIONS.topic, transaction.SerializeToString(), key=key, partition=shard_of(key, shards))
        if i % 100 == 0:
            report = FraudReport(
                transaction_id=str(i),
                reported_at_us=at + 7 * DAY_US,
                fraud=True,
                scenario=1,
                customer_id=key,
                terminal_id=where,
                event_time_us=at,
            )
            producer.produce(
                FRAUD_REPORTS.topic, report.SerializeToString(), key=str(i), partition=shard_of(str(i), shards)
            )
            reports += 1
        if i % 10_000 == 0:
            producer.poll(0)
    if producer.flush(60):
        raise RuntimeError(f"{bootstrap} did not take all messages within a minute")
    return reports
