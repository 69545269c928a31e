"""The worker's side on a real Redis: exactly once whatever repeats, wakes, restarts or goes back in time."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import redis
from feature_store import keys as names
from feature_store.admission import UNSET_CLOCK
from feature_store.codec import StateCodec, StateCorrupt
from feature_store.kernel import Points
from feature_store.sharding import shard_of
from feature_store.updates import Applied, EventColumns, ShardUpdate, StateWriter, VersionSuperseded, tail_field
from trine_cli.local.fixtures import PrivateRedis

from models.fraud.features import CUSTOMER_SPENDING, PLAN, TERMINAL_RISK

T = 1_700_000_000_000_000
SECOND = 1_000_000
TOPIC, TOPIC_ID = "trine.transactions", "topic-a"
Row = tuple[str, int, int, int]  # key, time, id, amount


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as found:
        yield found


def events(rows: Sequence[Row]) -> EventColumns:
    keys = sorted({key for key, *_ in rows})
    time_us, id_, amount = np.array([r[1:] for r in rows], dtype=np.int64).reshape(-1, 3).T
    index = np.array([keys.index(key) for key, *_ in rows], dtype=np.int32)
    return EventColumns("transactions", keys, index, time_us, id_, {"amount": amount})


def labels(rows: Sequence[tuple[str, int, int, int, int]]) -> EventColumns:
    """Rows of key, event's time, id, known at, value."""
    keys = sorted({key for key, *_ in rows})
    time_us, id_, known, value = np.array([r[1:] for r in rows], dtype=np.int64).reshape(-1, 4).T
    index = np.array([keys.index(key) for key, *_ in rows], dtype=np.int32)
    return EventColumns("fraud_reports", keys, index, time_us, id_, {"value": value}, known)


def update(
    shard: int,
    first: int,
    rows: Sequence[Row],
    clock: int = T,
    progress: int = 1,
    forget: Sequence[tuple[str, int]] = (),
) -> ShardUpdate:
    return ShardUpdate(shard, first, first + len(rows), clock, progress, [events(rows)] if rows else [], forget)


def writer(client: redis.Redis, owner: str, shards: Sequence[int], entity: str = "customer") -> StateWriter:
    made = StateWriter(client, PLAN, owner)
    made.claim(entity, TOPIC, TOPIC_ID, shards)
    return made


def state(client: redis.Redis, key: str, shard: int) -> Points:
    blob = client.get(names.state_prefix("customer", shard, "1", "customer") + key)
    assert blob is None or isinstance(blob, bytes)
    return StateCodec(CUSTOMER_SPENDING).decode([blob])


def told(applied: Sequence[Applied]) -> list[tuple[int, str, int]]:
    return [(a.shard, a.status, a.offset) for a in applied]


def everything(client: redis.Redis) -> dict[bytes, object]:
    """All that Redis holds, by key."""
    found: dict[bytes, object] = {}
    for key in client.scan_iter(count=1_000):
        found[key] = client.hgetall(key) if client.type(key) == b"hash" else client.get(key)
    return found


def test_a_new_shard_begins_at_zero_without_a_clock(client: redis.Redis) -> None:
    made = StateWriter(client, PLAN, "w1")
    first = made.claim("customer", TOPIC, TOPIC_ID, [3, 5])
    assert [(p.epoch, p.offset, p.clock_us, p.progress_us) for p in first.values()] == [(1, 0, UNSET_CLOCK, 0)] * 2
    assert told(made.apply("customer", [update(3, 0, [("C1", T, 1, 5)], clock=T + 1, progress=9)])) == [(3, "ok", 1)]
    again = made.claim("customer", TOPIC, TOPIC_ID, [3])
    assert [(p.epoch, p.offset, p.clock_us, p.progress_us) for p in again.values()] == [(2, 1, T + 1, 9)]


def test_several_shards_and_keys_in_one_batch(client: redis.Redis) -> None:
    made = writer(client, "w1", [1, 2, 3])
    batch = [
        update(1, 0, [("A", T, 1, 5), ("B", T, 2, 6), ("A", T + 1, 3, 7)]),
        update(2, 0, []),
        update(3, 0, [("A", T, 4, 8)]),
    ]
    assert told(made.apply("customer", batch)) == [(1, "ok", 3), (2, "ok", 0), (3, "ok", 1)]
    assert state(client, "A", 1).columns["amount"].tolist() == [5, 7]
    assert state(client, "B", 1).columns["amount"].tolist() == [6]
    assert state(client, "A", 3).columns["amount"].tolist() == [8]
    assert made.apply("customer", []) == []


def test_what_was_applied_is_refused_again(client: redis.Redis) -> None:
    """A crash between Redis's answer and the worker: the batch comes again and is told where the log goes on."""
    made = writer(client, "w1", [1])
    batch = [update(1, 0, [("A", T, 1, 5), ("A", T + 1, 2, 6)])]
    assert told(made.apply("customer", batch)) == [(1, "ok", 2)]
    before = everything(client)
    assert told(made.apply("customer", batch)) == [(1, "moved", 2)]
    assert told(made.apply("customer", [update(1, 7, [("A", T, 9, 5)])])) == [(1, "moved", 2)]
    assert everything(client) == before


def test_a_repeat_at_a_new_offset_changes_nothing_and_another_content_is_a_conflict(client: redis.Redis) -> None:
    made = writer(client, "w1", [1, 2])
    made.apply("customer", [update(1, 0, [("A", T, 1, 5)]), update(2, 0, [("B", T, 1, 5)])])
    seen: list[object] = []
    parts = [events([("A", T, 1, 5)]), events([("A", T + 9, 8, 1), ("A", T, 1, 6), ("A", T + 1, 1, 5)])]
    second = ShardUpdate(1, 1, 5, T, 1, parts)
    before = state(client, "A", 1)
    batch = [update(2, 1, [("B", T, 1, 5)]), second]
    done = made.apply("customer", batch, lambda found: seen.append((found, state(client, "A", 1).id.tolist())))
    assert told(done) == [(2, "ok", 2), (1, "ok", 5)]
    assert [(a.conflicts, a.duplicates) for a in done] == [((), 1), (((1, 1), (1, 2)), 1)]
    # Told before anything was written, so that the dead letter comes before the offset moves.
    assert seen == [({1: ((1, 1), (1, 2))}, before.id.tolist())]
    after = state(client, "A", 1)
    assert after.id.tolist() == [1, 8]
    assert after.columns["amount"].tolist() == [5, 1]


def test_nothing_is_written_where_conflicts_cannot_be_told(client: redis.Redis) -> None:
    made = writer(client, "w1", [1])
    made.apply("customer", [update(1, 0, [("A", T, 1, 5)])])
    before = everything(client)

    def refuse(_: object) -> None:
        raise ConnectionError("no dead letters today")

    with pytest.raises(ConnectionError):
        made.apply("customer", [update(1, 1, [("A", T, 1, 6)])], refuse)
    assert everything(client) == before


def test_an_older_writer_is_refused_for_good(client: redis.Redis) -> None:
    old = writer(client, "w1", [1, 2])
    old.apply("customer", [update(1, 0, [("A", T, 1, 5)])])
    new = StateWriter(client, PLAN, "w2")
    position = new.claim("customer", TOPIC, TOPIC_ID, [1])[1]
    assert (position.epoch, position.offset) == (2, 1)
    before = everything(client)
    both = [update(1, 1, [("A", T + 1, 2, 5)]), update(2, 0, [])]
    assert [s for _, s, _ in told(old.apply("customer", both))] == ["fenced", "ok"]
    assert old.heartbeat("customer", {1: 10**16, 2: 10**16}) == {1: "fenced", 2: "ok"}
    after = everything(client)
    changed = {k for k in after if after[k] != before.get(k)}
    assert changed == {names.meta("customer", 2, "1").encode()}
    assert told(new.apply("customer", [update(1, 1, [("A", T + 1, 2, 5)])])) == [(1, "ok", 2)]


def test_a_lost_script_is_loaded_again(client: redis.Redis) -> None:
    made = StateWriter(client, PLAN, "w1")
    client.script_flush()
    made.claim("customer", TOPIC, TOPIC_ID, [1, 2])
    client.script_flush()
    batch = [update(1, 0, [("A", T, 1, 5)]), update(2, 0, [("B", T, 1, 5)])]
    assert told(made.apply("customer", batch)) == [(1, "ok", 1), (2, "ok", 1)]
    client.script_flush()
    assert made.heartbeat("customer", {1: 5}) == {1: "ok"}
    assert len(state(client, "A", 1).id) == len(state(client, "B", 2).id) == 1


def test_an_emptied_redis_says_moved_and_the_log_starts_anew(client: redis.Redis) -> None:
    made = writer(client, "w1", [1])
    made.apply("customer", [update(1, 0, [("A", T, 1, 5)])])
    client.flushdb()
    assert made.heartbeat("customer", {1: 5}) == {1: "moved"}
    assert told(made.apply("customer", [update(1, 1, [("A", T + 1, 2, 5)])])) == [(1, "moved", 0)]
    assert everything(client) == {}
    position = made.claim("customer", TOPIC, TOPIC_ID, [1])[1]
    assert (position.offset, position.clock_us) == (0, UNSET_CLOCK)
    both = [("A", T, 1, 5), ("A", T + 1, 2, 5)]
    assert told(made.apply("customer", [update(1, 0, both)])) == [(1, "ok", 2)]
    assert state(client, "A", 1).id.tolist() == [1, 2]


def test_a_topic_made_anew_starts_at_zero_with_the_clock_kept(client: redis.Redis) -> None:
    made = writer(client, "w1", [1])
    made.apply("customer", [update(1, 0, [("A", T, 1, 5)], clock=T + 5)])
    position = made.claim("customer", TOPIC, "topic-b", [1])[1]
    assert (position.offset, position.clock_us) == (0, T + 5)
    again = update(1, 0, [("A", T, 1, 5), ("A", T + 7, 2, 5)])
    assert told(made.apply("customer", [again])) == [(1, "ok", 2)]
    assert state(client, "A", 1).id.tolist() == [1, 2]


def test_heartbeats_move_progress_forward_only(client: redis.Redis) -> None:
    made = writer(client, "w1", [1])
    progress = []
    for at in (5, 9, 7):
        assert made.heartbeat("customer", {1: at}) == {1: "ok"}
        progress.append(int(client.hget(names.meta("customer", 1, "1"), "progress_us") or 0))
    assert progress == [5, 9, 9]


def test_absorbed_and_dead_events_leave_the_tail_and_others_stay(client: redis.Redis) -> None:
    made = writer(client, "w1", [1])
    meta, tail = names.meta("customer", 1, "1"), names.tail_prefix("customer", 1, "customer")
    for key, id_ in (("A", 1), ("A", 2), ("A", 3), ("B", 4)):
        client.hset(tail + key, tail_field(id_), b"x" * 16)
        client.hincrby(meta, "tails", 1)
    done = made.apply("customer", [update(1, 0, [("A", T, 1, 5)], forget=[("A", 3), ("B", 99), ("C", 5)])])
    assert told(done) == [(1, "ok", 1)]
    assert client.hkeys(tail + "A") == [tail_field(2)]
    assert client.hkeys(tail + "B") == [tail_field(4)]
    assert client.hget(meta, "tails") == b"2"


def test_labels_come_first_late_and_twice(client: redis.Redis) -> None:
    shard = 1
    made = writer(client, "w1", [shard], "terminal")
    said = [("T1", T, 1, T + 5, 1), ("T1", T, 2, T + 6, 1)]
    parts = [
        [labels(said)],
        [events([("T1", T, 1, 5)]), labels([said[0]])],
        [events([("T1", T + 1, 3, 5), ("T1", T, 1, 5)]), labels([("T1", T, 1, T + 9, 0)])],
    ]
    for i, some in enumerate(parts):
        assert told(made.apply("terminal", [ShardUpdate(shard, i, i + 1, T, 1, some)])) == [(shard, "ok", i + 1)]
    name = names.state_prefix("terminal", shard, "1", "terminal") + "T1"
    stepwise = client.get(name)
    client.flushdb()
    made = writer(client, "w2", [shard], "terminal")
    once = ShardUpdate(shard, 0, 3, T, 1, [p for some in reversed(parts) for p in some])
    made.apply("terminal", [once])
    assert client.get(name) == stepwise
    assert isinstance(stepwise, bytes)
    points = StateCodec(TERMINAL_RISK).decode([stepwise])
    assert points.id.tolist() == [1, 3]
    assert points.labels is not None
    assert points.labels.value.tolist() == [1, 0, 1]


def test_damaged_state_is_not_written_over(client: redis.Redis) -> None:
    made = writer(client, "w1", [1])
    made.apply("customer", [update(1, 0, [("A", T, 1, 5)])])
    name = names.state_prefix("customer", 1, "1", "customer") + "A"
    client.setrange(name, 20, b"\xff")
    before = everything(client)
    with pytest.raises(StateCorrupt, match="view customer"):
        made.apply("customer", [update(1, 1, [("A", T + 1, 2, 5)])])
    assert everything(client) == before


def test_a_shard_that_was_not_claimed_is_an_error(client: redis.Redis) -> None:
    made = writer(client, "w1", [1])
    with pytest.raises(KeyError):
        made.apply("customer", [update(2, 0, [("A", T, 1, 5)])])


@pytest.mark.parametrize("seed", range(3))
def test_a_random_log_in_random_batches_with_crashes_equals_one_go(client: redis.Redis, seed: int) -> None:
    """Batches of any cut, repeated batches, takeovers and repeats at new offsets: the same bytes as a calm run's."""
    rng = np.random.default_rng(seed)
    keys = [f"K{i}" for i in range(40)]
    log: dict[int, list[Row]] = {s: [] for s in range(4)}
    for i in range(400):
        key = str(rng.choice(keys))
        row = (key, T + int(rng.integers(0, 40 * 86_400)) * SECOND, i, int(rng.integers(1, 10**6)))
        log[shard_of(key, 4)].append(row)
        if rng.random() < 0.2:  # the producer sends one again
            own = log[shard_of(key, 4)]
            own.append(own[int(rng.integers(len(own)))])
    calm = writer(client, "calm", range(4))
    calm.apply("customer", [update(s, 0, rows) for s, rows in log.items()])
    right = {k: v for k, v in everything(client).items() if b"}s:" in k}
    client.flushdb()
    at = dict.fromkeys(range(4), 0)
    made, owners = writer(client, "w0", range(4)), 0
    while any(at[s] < len(log[s]) for s in log):
        batch = []
        for s in log:
            size = int(rng.integers(0, 30))
            rows = log[s][at[s] : at[s] + size]
            batch.append(update(s, at[s], rows))
        done = made.apply("customer", batch)
        assert {a.status for a in done} == {"ok"}
        if rng.random() < 0.3:  # died before it noted the answer; another one takes over
            owners += 1
            zombie, made = made, StateWriter(client, PLAN, f"w{owners}")
            positions = made.claim("customer", TOPIC, TOPIC_ID, range(4))
            assert {a.status for a in zombie.apply("customer", batch)} == {"fenced"}
            at = {s: p.offset for s, p in positions.items()}
        else:
            at = {a.shard: a.offset for a in done}
    assert {k: v for k, v in everything(client).items() if b"}s:" in k} == right


def test_a_redis_that_went_back_in_time_goes_on_from_its_own_offset(private_redis: PrivateRedis) -> None:
    server = private_redis(appendfsync="always")
    rows: list[Row] = [("A", T + i * SECOND, i, 10 + i) for i in range(6)]
    with server.connect() as client:
        made = writer(client, "w1", [1])
        made.apply("customer", [update(1, 0, rows[:2], clock=T + SECOND)])
    server.stop()
    copy = server.folder.with_name("copy")
    shutil.copytree(server.folder, copy)
    again = private_redis(folder=server.folder, port=server.port)
    with again.connect() as client:
        made = StateWriter(client, PLAN, "w2")
        made.claim("customer", TOPIC, TOPIC_ID, [1])
        assert told(made.apply("customer", [update(1, 2, rows[2:4], clock=T + 3 * SECOND)])) == [(1, "ok", 4)]
    again.stop()
    older = private_redis(folder=copy, port=server.port)
    with older.connect() as client:
        late = StateWriter(client, PLAN, "other")
        made = StateWriter(client, PLAN, "w2")
        made._epochs["customer", 1] = 2  # the process of before, on a connection to the older data
        assert told(made.apply("customer", [update(1, 4, rows[4:])])) == [(1, "moved", 2)]
        assert made.heartbeat("customer", {1: 5}) == {1: "moved"}
        position = made.claim("customer", TOPIC, TOPIC_ID, [1])[1]
        assert (position.offset, position.clock_us) == (2, T + SECOND)
        assert told(made.apply("customer", [update(1, 2, rows[2:])])) == [(1, "ok", 6)]
        assert state(client, "A", 1).id.tolist() == list(range(6))
        # Two lives that hold the same epoch number, by the rollback, are told apart by their owner.
        late._epochs["customer", 1] = position.epoch
        assert told(late.apply("customer", [update(1, 6, rows[:1])])) == [(1, "moved", 6)]


def test_a_writer_of_a_version_that_is_served_no_more_is_refused(client: redis.Redis) -> None:
    """Whatever is still to be absorbed stays in the tail, for the version that is served."""
    made = writer(client, "w1", [1])
    tail = names.tail_prefix("customer", 1, "customer") + "A"
    client.hset(tail, tail_field(1), b"x" * 16)
    client.hincrby(names.meta("customer", 1, "1"), "tails", 1)
    client.set(names.VERSION_POINTER, "2")
    before = everything(client)
    assert told(made.apply("customer", [update(1, 0, [("A", T, 1, 5)])])) == [(1, "superseded", 0)]
    assert made.heartbeat("customer", {1: 5}) == {1: "superseded"}
    with pytest.raises(VersionSuperseded):
        made.claim("customer", TOPIC, TOPIC_ID, [1])
    assert everything(client) == before
    assert made.current_version() == "2"


def test_the_next_version_is_written_unseen_and_leaves_the_tails_alone(client: redis.Redis) -> None:
    served = writer(client, "w1", [1])
    with pytest.raises(VersionSuperseded):
        StateWriter(client, PLAN, "w1", names.NEXT_POINTER)
    client.set(names.NEXT_POINTER, "2")
    following = StateWriter(client, PLAN, "w1", names.NEXT_POINTER)
    following.claim("customer", TOPIC, TOPIC_ID, [1])
    tail = names.tail_prefix("customer", 1, "customer") + "A"
    client.hset(tail, tail_field(1), b"x" * 16)
    for version in "1", "2":
        client.hincrby(names.meta("customer", 1, version), "tails", 1)
    batch = [update(1, 0, [("A", T, 1, 5)])]
    assert told(following.apply("customer", batch)) == [(1, "ok", 1)]
    assert state(client, "A", 1).id.tolist() == []
    assert client.hlen(tail) == 1
    assert told(served.apply("customer", batch)) == [(1, "ok", 1)]
    assert state(client, "A", 1).id.tolist() == [1]
    assert client.hlen(tail) == 0
    # The rebuild has gone, or its version is served.
    client.delete(names.NEXT_POINTER)
    assert told(following.apply("customer", [update(1, 1, [("A", T + 1, 2, 5)])])) == [(1, "superseded", 0)]


def test_a_shard_without_the_base_it_had_says_no_progress(client: redis.Redis) -> None:
    client.hset(names.meta("customer", 2, "1"), mapping={"offset": 7, "clock": T, "base": "4:9", "progress_us": 3})
    made = StateWriter(client, PLAN, "w1")
    found = made.claim("customer", TOPIC, TOPIC_ID, [1, 2, 3], {1: "2:5", 2: "2:5"})
    assert [(p.base, p.lost, p.offset) for p in found.values()] == [("", "2:5", 0), ("4:9", "", 7), ("", "", 0)]
    made.apply("customer", [update(1, 0, [("A", T, 1, 5)], progress=9), update(2, 7, [], progress=9)])
    made.heartbeat("customer", {1: 10, 3: 10})
    metas = [client.hget(names.meta("customer", shard, "1"), "progress_us") for shard in (1, 2, 3)]
    assert metas == [None, b"9", b"10"]
    # Nobody who claims it later makes it whole.
    again = made.claim("customer", TOPIC, TOPIC_ID, [1])[1]
    assert (again.lost, again.offset) == ("2:5", 1)
