"""Reading and appending on a real Redis: the ledger, the clock, tails, lost state, and what happens without Redis."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import redis
from feature_store import keys as names
from feature_store.online import (
    BatchRead,
    FeatureRequest,
    OnlineFeatures,
    Outcome,
    StoreMisconfigured,
    StoreUnavailable,
)
from feature_store.sharding import shard_of
from feature_store.updates import ShardUpdate, StateWriter, tail_field
from tests.test_updates import events
from trine_cli.local.fixtures import PrivateRedis

from models.fraud.features import PLAN

T = 1_700_000_000_000_000
SECOND = 1_000_000
DAY = 86_400 * SECOND
SHARDS = 8
COUNT_1D, MEAN_1D = (PLAN.features.index(f"customer_{n}_1d") for n in ("count", "mean_amount"))


def request(id_: int, customer: str = "C1", amount: int = 100, at: int | None = None) -> FeatureRequest:
    time_us = T + id_ * SECOND if at is None else at
    payload = f"{id_} {customer} {amount} {time_us}".encode()
    keys = {"customer": customer, "terminal": "T1"}
    return FeatureRequest(str(id_), time_us, keys, {"amount": amount}, hashlib.md5(payload).digest())


class Worker:
    """Absorbs requests' events as the stream worker would, both entities."""

    def __init__(self, client: redis.Redis, owner: str = "w", progress_us: int | None = None) -> None:
        self.writer = StateWriter(client, PLAN, owner)
        self.at = {e: dict.fromkeys(range(SHARDS), 0) for e in ("customer", "terminal")}
        for entity in self.at:
            found = self.writer.claim(entity, PLAN.topic_of(entity), "tid", range(SHARDS))
            self.at[entity] = {s: p.offset for s, p in found.items()}
            self.writer.heartbeat(entity, dict.fromkeys(range(SHARDS), progress_us or time.time_ns() // 1_000))

    def absorb(self, *requests: FeatureRequest, clock: int | None = None) -> None:
        for entity, at in self.at.items():
            for r in requests:
                shard = shard_of(r.keys[entity], SHARDS)
                part = events([(r.keys[entity], r.time_us, int(r.event_id), r.fields["amount"])])
                now = clock if clock is not None else r.time_us
                step = ShardUpdate(shard, at[shard], at[shard] + 1, now, time.time_ns() // 1_000, [part])
                (done,) = self.writer.apply(entity, [step])
                assert done.status == "ok"
                at[shard] = done.offset


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as found:
        yield found


@pytest.fixture
def worker(client: redis.Redis) -> Worker:
    return Worker(client)


@pytest.fixture
async def online(redis_url: str, worker: Worker) -> AsyncIterator[OnlineFeatures]:
    made = await OnlineFeatures.connect(redis_url, PLAN, SHARDS, timeout_s=5.0)
    yield made
    await made.close()


def everything(client: redis.Redis) -> dict[bytes, object]:
    found: dict[bytes, object] = {}
    for key in client.scan_iter(count=1_000):
        found[key] = client.hgetall(key) if client.type(key) == b"hash" else client.get(key)
    return found


async def counts(online: OnlineFeatures, requests: Sequence[FeatureRequest]) -> list[float]:
    read = await online.read_and_append(requests)
    assert set(read.outcomes) == {Outcome.NEW}
    return [float(x) for x in read.vectors[:, COUNT_1D]]


async def test_every_request_sees_all_before_it_with_the_worker_stopped(online: OnlineFeatures) -> None:
    assert [(await counts(online, [request(i)]))[0] for i in range(1, 20)] == list(range(1, 20))
    # And inside one batch.
    assert await counts(online, [request(20), request(21, "C2"), request(22)]) == [20, 1, 21]
    read = await online.read_and_append([request(23, amount=2_100)])
    assert read.vectors[0, MEAN_1D] == np.float32((21 * 100 + 2_100) / 22)
    assert sorted(read.inputs[0][0].tail_ids) == [*range(1, 21), 22, 23]


async def test_an_empty_batch_and_a_mixed_one(online: OnlineFeatures, client: redis.Redis) -> None:
    empty = await online.read_and_append([])
    assert (empty.outcomes, empty.replies, empty.inputs, empty.clock_us) == ([], [], [], [])
    assert empty.vectors.shape == (0, len(PLAN.features))
    first = [request(i, f"C{i}") for i in range(4)]
    await online.read_and_append(first)
    await online.remember([("1", first[1].fingerprint, b"said"), ("2", first[2].fingerprint, b"")])
    mixed = [first[0], first[1], request(7, "C1"), replace(first[2], fingerprint=b"x" * 16), first[2], request(8, "C0")]
    read = await online.read_and_append(mixed)
    assert read.outcomes == [
        Outcome.PENDING, Outcome.REPEATED, Outcome.NEW, Outcome.CONFLICT, Outcome.REPEATED, Outcome.NEW,
    ]  # fmt: skip
    assert read.replies == [None, b"said", None, None, b"", None]
    assert read.usable.tolist() == [False, False, True, False, False, True]
    assert read.vectors[:, COUNT_1D].tolist() == [0, 0, 2, 0, 0, 2]
    assert [len(i) for i in read.inputs] == [0, 0, 2, 0, 0, 2]
    assert read.inputs[5][0].key == "C0"
    assert not read.vectors[[0, 1, 3, 4]].any()


async def test_the_ledger(online: OnlineFeatures, client: redis.Redis) -> None:
    r = request(1)
    assert await online.recall("1", r.fingerprint) == (Outcome.NEW, None)
    await online.read_and_append([r])
    assert await online.recall("1", r.fingerprint) == (Outcome.PENDING, None)
    assert await online.recall("1", b"y" * 16) == (Outcome.CONFLICT, None)
    await online.remember([("1", r.fingerprint, b"\x00reply\xff")])
    assert await online.recall("1", r.fingerprint) == (Outcome.REPEATED, b"\x00reply\xff")
    before = everything(client)
    for other, outcome in ((r, Outcome.REPEATED), (request(1, amount=7), Outcome.CONFLICT)):
        assert (await online.read_and_append([other])).outcomes == [outcome]
    assert everything(client) == before
    assert 0 < client.pttl(names.ledger("1")) <= 3_600_000


async def test_a_lease_that_ran_out_is_taken_over_and_appends_nothing_twice(redis_url: str, worker: Worker) -> None:
    online = await OnlineFeatures.connect(redis_url, PLAN, SHARDS, timeout_s=5.0, lease_ms=80)
    other = await OnlineFeatures.connect(redis_url, PLAN, SHARDS, timeout_s=5.0, lease_ms=80)
    r = request(5)
    await online.read_and_append([request(4)])
    assert await counts(online, [r]) == [2]
    assert (await other.read_and_append([r])).outcomes == [Outcome.PENDING]
    deadline = time.monotonic() + 5
    while (read := await other.read_and_append([r])).outcomes == [Outcome.PENDING]:
        assert time.monotonic() < deadline
    assert read.outcomes == [Outcome.NEW]
    assert read.vectors[0, COUNT_1D] == 2
    assert read.inputs[0][0].tail_ids == (4, 5)
    assert await counts(other, [request(6)]) == [3]
    await online.close()
    await other.close()


@pytest.mark.parametrize("at", [T - DAY - 1, T + 31 * DAY + 1])
async def test_late_and_future_write_nothing(
    online: OnlineFeatures, worker: Worker, client: redis.Redis, at: int
) -> None:
    worker.absorb(request(0))
    before = everything(client)
    read = await online.read_and_append([request(1, at=at)])
    assert read.outcomes == [Outcome.LATE if at < T else Outcome.FUTURE]
    assert (read.clock_us, read.usable.tolist()) == ([T], [False])
    assert everything(client) == before


@pytest.mark.parametrize("at", [T - DAY, T + 31 * DAY])
async def test_the_borders_of_late_and_future_are_inside(online: OnlineFeatures, worker: Worker, at: int) -> None:
    worker.absorb(request(0))
    read = await online.read_and_append([request(1, at=at)])
    assert (read.outcomes, read.clock_us) == ([Outcome.NEW], [-1])


async def test_another_customers_shard_does_not_judge(online: OnlineFeatures, worker: Worker) -> None:
    """Only the shard of the event's own partition has a say: not the terminal's, which hears of everyone."""
    other = next(f"X{i}" for i in range(99) if shard_of(f"X{i}", SHARDS) != shard_of("C1", SHARDS))
    worker.absorb(request(0, other))
    assert (await online.read_and_append([request(1, at=T - 300 * DAY)])).outcomes == [Outcome.NEW]


async def test_an_absorbed_event_still_in_a_tail_counts_once_and_the_tail_is_tidied(
    online: OnlineFeatures, worker: Worker, client: redis.Redis
) -> None:
    first, second = request(1), request(2)
    worker.absorb(first)  # Kafka was quicker than the gateway's read
    read = await online.read_and_append([first])
    assert read.vectors[0, COUNT_1D] == 1
    assert not read.inputs[0][0].known  # its own event is no history
    shard = shard_of("C1", SHARDS)
    meta, tail = names.meta("customer", shard, "1"), names.tail_prefix("customer", shard, "customer") + "C1"
    assert client.hkeys(tail) == [tail_field(1)]
    assert client.hget(meta, "tails") == b"1"
    assert await counts(online, [second]) == [2]
    await online.remember([("1", first.fingerprint, b"r")])
    assert client.hkeys(tail) == [tail_field(2)]
    assert client.hget(meta, "tails") == b"1"
    worker.absorb(second)
    assert not client.exists(tail)
    assert client.hget(meta, "tails") == b"0"
    assert await counts(online, [request(3)]) == [3]


async def test_an_id_with_another_content_does_not_change_what_was_absorbed(
    online: OnlineFeatures, worker: Worker, client: redis.Redis
) -> None:
    """Its ledger entry is long gone; the state still knows."""
    worker.absorb(request(1, amount=100))
    read = await online.read_and_append([request(1, amount=900)])
    assert (read.vectors[0, COUNT_1D], read.vectors[0, MEAN_1D]) == (1, 100)


async def test_an_event_of_a_tail_far_ahead_hides_nothing(online: OnlineFeatures, worker: Worker) -> None:
    """The worker lags: a request a month ahead is in the tail only, and another one, on time, comes after it."""
    worker.absorb(request(0, at=T - 29 * DAY), request(1, at=T))
    assert await counts(online, [request(2, at=T + 31 * DAY)]) == [1]
    read = await online.read_and_append([request(3, at=T)])
    assert read.vectors[0, PLAN.features.index("customer_count_30d")] == 3


async def test_two_hundred_at_once_from_several_processes_see_each_other_exactly_once(
    redis_url: str, worker: Worker
) -> None:
    """What each saw, ordered by size, grows by one event at a time: all appends lie on one line."""
    stores = [await OnlineFeatures.connect(redis_url, PLAN, SHARDS, timeout_s=5.0) for _ in range(4)]
    asked = [request(i, at=T) for i in range(200)]

    async def one(i: int) -> BatchRead:
        return await stores[i % 4].read_and_append([asked[i]])

    reads = await asyncio.gather(*(one(i) for i in range(200)))
    seen = [set(r.inputs[0][0].tail_ids) for r in reads]
    assert sorted(len(s) for s in seen) == list(range(1, 201))
    ordered = sorted(seen, key=len)
    assert all(a < b for a, b in pairwise(ordered))
    for i, (read, ids) in enumerate(zip(reads, seen, strict=True)):
        assert i in ids
        # At the same microsecond what had come counts, whatever its id: the counts are a permutation.
        assert read.vectors[0, COUNT_1D] == len(ids)
    for store in stores:
        await store.close()


async def test_scripts_are_loaded_again(online: OnlineFeatures, client: redis.Redis, worker: Worker) -> None:
    client.script_flush()
    assert await counts(online, [request(1)]) == [1]
    worker.absorb(request(1), request(2))
    client.script_flush()
    assert await counts(online, [request(2)]) == [2]
    await online.remember([("2", request(2).fingerprint, b"r")])
    tail = names.tail_prefix("customer", shard_of("C1", SHARDS), "customer") + "C1"
    assert not client.exists(tail)


async def test_a_new_customer_is_told_from_lost_state(
    online: OnlineFeatures, worker: Worker, client: redis.Redis
) -> None:
    read = await online.read_and_append([request(1, "NEW")])
    assert read.usable.tolist() == [True]
    assert [(i.view, i.known, i.lost) for i in read.inputs[0]] == [
        ("customer", False, False), ("terminal", False, False),
    ]  # fmt: skip
    read = await online.read_and_append([request(2, "NEW")])
    assert read.inputs[0][0].known
    client.delete(names.meta("terminal", shard_of("T1", SHARDS), "1"))
    read = await online.read_and_append([request(3, "NEW")])
    assert [(i.known, i.lost) for i in read.inputs[0]] == [(True, False), (False, True)]
    assert read.usable.tolist() == [False]
    usable = dict(zip(PLAN.features, read.feature_usable[0].tolist(), strict=True))
    assert {n for n, u in usable.items() if not u} == {n for n in PLAN.features if n.startswith("terminal_")}
    client.flushdb()
    read = await online.read_and_append([request(4, "NEW")])
    assert [i.lost for i in read.inputs[0]] == [True, True]
    assert read.feature_usable[0].tolist() == [True] * 3 + [False] * (len(PLAN.features) - 3)
    assert read.vectors[0, :3].tolist() == [100, 0, 0]
    assert not read.vectors[0, 3:].any()


async def test_a_claimed_shard_without_progress_is_lost_until_the_worker_says_so(
    redis_url: str, client: redis.Redis
) -> None:
    writer = StateWriter(client, PLAN, "w")
    for entity in ("customer", "terminal"):
        writer.claim(entity, PLAN.topic_of(entity), "tid", range(SHARDS))
    online = await OnlineFeatures.connect(redis_url, PLAN, SHARDS, timeout_s=5.0)
    assert (await online.read_and_append([request(1)])).usable.tolist() == [False]
    for entity in ("customer", "terminal"):
        writer.heartbeat(entity, dict.fromkeys(range(SHARDS), 1))
    read = await online.read_and_append([request(2)])
    assert read.usable.tolist() == [True]
    assert read.vectors[0, COUNT_1D] == 2  # what came in between was not forgotten
    await online.close()


async def test_lag_is_that_of_the_worst_shard(redis_url: str, client: redis.Redis) -> None:
    now = time.time_ns() // 1_000
    worker = Worker(client, progress_us=now)
    shard = shard_of("T1", SHARDS)
    client.hset(names.meta("terminal", shard, "1"), "progress_us", now - 60 * SECOND)
    client.hset(names.meta("customer", shard_of("C1", SHARDS), "1"), "progress_us", now + 60 * SECOND)
    online = await OnlineFeatures.connect(redis_url, PLAN, SHARDS, timeout_s=5.0)
    read = await online.read_and_append([request(1)])
    assert 60_000 <= read.lag_ms[0] < 120_000
    worker.writer.heartbeat("terminal", {shard: now})
    assert (await online.read_and_append([request(2)])).lag_ms[0] < 60_000
    await online.close()


async def test_what_a_vector_was_made_of(online: OnlineFeatures, worker: Worker) -> None:
    worker.absorb(request(1), request(2))
    read = await online.read_and_append([request(3)])
    customer, terminal = read.inputs[0]
    assert customer._asdict() == {
        "view": "customer", "entity": "customer", "key": "C1", "version": "1", "topic": "trine.transactions",
        "topic_id": "tid", "shard": shard_of("C1", SHARDS), "offset": 2, "tail_ids": (3,), "known": True, "lost": False,
    }  # fmt: skip
    assert (terminal.topic, terminal.shard, terminal.tail_ids) == ("trine.by-terminal", shard_of("T1", SHARDS), ())


async def test_read_writes_nothing_and_sees_the_tail(
    online: OnlineFeatures, worker: Worker, client: redis.Redis
) -> None:
    worker.absorb(request(1))
    await online.read_and_append([request(2, amount=300)])
    before = everything(client)
    known, new = await online.read("customer", ["C1", "C2"], T + DAY)
    assert everything(client) == before
    assert (known.features["customer_count_1d"], known.features["customer_mean_amount_1d"]) == (2, 200)
    assert [(e.key, e.known, e.lost) for e in (known, new)] == [("C1", True, False), ("C2", False, False)]
    (early,) = await online.read("customer", ["C1"], T + SECOND)
    assert early.features["customer_count_1d"] == 1
    (terminal,) = await online.read("terminal", ["T1"], T + 7 * DAY + 5 * SECOND)
    assert terminal.features["terminal_count_1d"] == 1
    assert await online.read("customer", [], T) == []
    with pytest.raises(KeyError, match="moon"):
        await online.read("moon", ["C1"], T)
    client.flushdb()
    assert [e.lost for e in await online.read("customer", ["C1"], T)] == [True]


async def test_the_served_version_is_the_one_that_is_read_from_the_moment_it_is_flipped(
    online: OnlineFeatures, worker: Worker, client: redis.Redis
) -> None:
    assert await counts(online, [request(1)]) == [1]
    client.set(names.VERSION_POINTER, "2")
    read = await online.read_and_append([request(2)])
    assert [(i.version, i.lost) for i in read.inputs[0]] == [("2", True), ("2", True)]
    Worker(client, "w2")
    read = await online.read_and_append([request(3)])
    assert read.usable.tolist() == [True]
    # Nothing of what was appended before is missed: the tails are of all versions.
    assert sorted(read.inputs[0][0].tail_ids) == [1, 2, 3]
    client.set(names.VERSION_POINTER, "1")
    assert await counts(online, [request(4)]) == [4]


async def test_damaged_state_is_lost_for_its_entity_alone(
    online: OnlineFeatures, worker: Worker, client: redis.Redis
) -> None:
    worker.absorb(request(1))
    worker.absorb(request(2, customer="C2"))
    client.setrange(names.state_prefix("customer", shard_of("C1", SHARDS), "1", "customer") + "C1", 30, b"\xff")
    read = await online.read_and_append([request(3), request(4, customer="C2")])
    assert read.usable.tolist() == [False, True]
    assert [i[0].lost for i in read.inputs] == [True, False]
    assert len(read.damaged) == 1
    assert "C1: view customer" in read.damaged[0]
    found = await online.read("customer", ["C1", "C2"], request(5).time_us)
    assert [e.lost for e in found] == [True, False]


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
async def test_a_redis_that_may_evict_is_refused(private_redis: PrivateRedis, policy: str) -> None:
    server = private_redis(maxmemory_policy=policy)
    with pytest.raises(StoreMisconfigured, match=f"{policy}.*noeviction"):
        await OnlineFeatures.connect(server.url, PLAN, SHARDS)


async def test_without_redis_every_call_gives_up_quickly_and_recovers(private_redis: PrivateRedis) -> None:
    server = private_redis()
    with server.connect() as client:
        Worker(client)
    online = await OnlineFeatures.connect(server.url, PLAN, SHARDS, timeout_s=1.0)
    assert await counts(online, [request(1)]) == [1]

    async def refused() -> None:
        for call in (
            online.read_and_append([request(2)]),
            online.remember([("2", b"f" * 16, b"r")]),
            online.recall("2", b"f" * 16),
            online.read("customer", ["C1"], T),
        ):
            began = time.monotonic()
            with pytest.raises(StoreUnavailable):
                await call
            assert time.monotonic() - began < 4

    pid = server.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)  # it holds its connections and says nothing
    try:
        await refused()
    finally:
        os.kill(pid, signal.SIGCONT)
    deadline = time.monotonic() + 10
    while True:
        try:
            read = await online.read_and_append([request(3)])
            break
        except StoreUnavailable:
            assert time.monotonic() < deadline
    assert read.outcomes == [Outcome.NEW]
    server.stop()
    await refused()
    vectors, usable = online.request_vectors([request(5, amount=77)])
    assert vectors[0].tolist() == [77.0] + [0.0] * (len(PLAN.features) - 1)
    assert usable.tolist() == [True] * 3 + [False] * (len(PLAN.features) - 3)
    await online.close()
    with pytest.raises(StoreUnavailable):
        await OnlineFeatures.connect(server.url, PLAN, SHARDS)
