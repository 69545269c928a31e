"""Messages that cannot be used, and everything around a worker's start and end."""

from __future__ import annotations

import json
import time
import urllib.request
from collections import Counter
from collections.abc import Sequence

import redis
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient
from feature_store import keys as names
from feature_store.ids import id64
from feature_store.sharding import shard_of
from feature_store.updates import StateWriter, tail_field
from tests.stream_scene import DAY_US, START_US, Load, NewScene, Scene, until
from trine.events.v1.events_pb2 import FraudReport, Transaction
from trine_cli.local.fixtures import PrivateRedis
from trine_cli.local.topics import create_topics


def transaction(n: int, **changes: object) -> Transaction:
    """A good transaction of customer c1, a minute after the one before it."""
    values: dict[str, object] = {
        "transaction_id": f"t-{n}",
        "event_time_us": START_US + n * 60_000_000,
        "customer_id": "c1",
        "terminal_id": "7",
        "amount": 100 + n,
        "currency": "EUR",
    }
    return Transaction(**{**values, **changes})  # type: ignore[arg-type]


def report(n: int, **changes: object) -> FraudReport:
    """Says that transaction n was fraud, a day later."""
    values: dict[str, object] = {
        "transaction_id": f"t-{n}",
        "reported_at_us": START_US + n * 60_000_000 + DAY_US,
        "fraud": True,
        "scenario": 2,
        "customer_id": "c1",
        "terminal_id": "7",
        "event_time_us": START_US + n * 60_000_000,
    }
    return FraudReport(**{**values, **changes})  # type: ignore[arg-type]


def raw(scene: Scene, message: Transaction | FraudReport) -> tuple[bytes, bytes, int]:
    key = message.customer_id if isinstance(message, Transaction) else message.transaction_id
    return key.encode(), message.SerializeToString(), shard_of(key, scene.shards)


def test_dead_letters_once_each_naming_the_field(new_scene: NewScene) -> None:
    scene = new_scene()
    home = shard_of("c1", scene.shards)
    bad: list[tuple[bytes | None, bytes | None, int, str, str]] = [
        (b"c1", b"\xff\x00garbage", home, "malformed", ""),
        (None, None, home, "malformed", ""),
        (b"c1", b"", home, "invalid", "transaction_id"),
        (b"c1", b"\xff" * 900_000, home, "malformed", ""),
    ]
    wrong: dict[str, Sequence[str | int | None]] = {
        "transaction_id": ["a b", "x" * 65, "ä"],
        "event_time_us": [0, -5, 10**17],
        "terminal_id": [""],
        "amount": [None, -100, 10**12 + 1],
        "currency": ["eur", "EURO", "ZZZ", ""],
    }
    for field, values in wrong.items():
        for wrong_value in values:
            message = transaction(50, **{field: wrong_value})
            bad.append((b"c1", message.SerializeToString(), home, "invalid", field))
    misplaced = transaction(51, customer_id="c2")
    bad.append((b"c2", misplaced.SerializeToString(), (shard_of("c2", scene.shards) + 1) % 8, "invalid", "customer_id"))
    worker = scene.worker()
    scene.send([transaction(n) for n in range(20)])
    scene.send_raw(scene.topics[0], [entry[:3] for entry in bad])
    reports: list[tuple[bytes | None, bytes | None, int, str, str]] = []
    for field, value in {"terminal_id": "", "reported_at_us": -1, "event_time_us": 0, "transaction_id": "?"}.items():
        key, value_bytes, partition = raw(scene, report(3, **{field: value}))
        reports.append((key, value_bytes, partition, "invalid", field))
    key, value_bytes, partition = raw(scene, report(3, reported_at_us=START_US))
    reports.append((key, value_bytes, partition, "invalid", "reported_at_us"))
    reports.append((b"r", b"garbage", 0, "malformed", ""))
    scene.send_raw(scene.topics[1], [entry[:3] for entry in reports])
    # An amount of 0 is an amount.
    scene.send([transaction(n, amount=0 if n == 29 else n) for n in range(20, 30)] + [report(5)])
    scene.settled()

    letters = scene.letters()
    assert len({letter.dead_letter_id for letter in letters}) == len(letters) == len(bad) + len(reports)
    found = Counter((letter.topic, letter.reason, letter.field) for letter in letters)
    expected = Counter((scene.topics[0], reason, field) for *_, reason, field in bad)
    expected += Counter((scene.topics[1], reason, field) for *_, reason, field in reports)
    assert found == expected
    for letter in letters:
        assert letter.field in letter.detail
        assert letter.dead_letter_id == f"{letter.topic}/{letter.partition}/{letter.offset}"
    whole = {(entry[0] or b"", entry[1] or b"") for entry in (*bad, *reports) if len(entry[1] or b"") < 500_000}
    assert {(letter.key, letter.value) for letter in letters if len(letter.value) < 500_000} == whole
    assert any("the first" in letter.detail for letter in letters if len(letter.value) == 512 * 1024)
    # The good ones around them are in.
    points = scene.points("customer")["c1"][0]
    assert len(points) == 30
    assert (START_US + 29 * 60_000_000, id64("t-29"), 0) in points
    assert any("amount is missing; must be 0 to" in letter.detail for letter in letters)
    events, labels = scene.points("terminal")["7"]
    assert len(events) == 30
    assert len(labels) == 1
    by_reason = sum(scene.metric(worker, "trine_worker_dead_letters_total", reason=r) for r in ("malformed", "invalid"))
    assert by_reason == len(letters)


def test_one_wrong_date_does_not_set_the_clock_of_an_empty_shard(new_scene: NewScene) -> None:
    scene = new_scene()
    ahead = time.time_ns() // 1_000 + 32 * DAY_US
    scene.send([transaction(1, event_time_us=ahead), transaction(2), report(2, reported_at_us=ahead), report(2)])
    scene.worker()
    scene.settled()
    letters = scene.letters()
    assert [(x.reason, x.field) for x in sorted(letters, key=lambda x: x.topic)] == [
        ("future", "reported_at_us"),
        ("future", "event_time_us"),
    ]
    assert all("past the time it was recorded at" in letter.detail for letter in letters)
    assert {e[1] for e in scene.points("customer")["c1"][0]} == {id64("t-2")}
    events, labels = scene.points("terminal")["7"]
    assert ({e[1] for e in events}, len(labels)) == ({id64("t-2")}, 1)


def test_late_future_and_conflict(new_scene: NewScene) -> None:
    scene = new_scene()
    t = START_US + 10 * DAY_US
    other = next(f"c{n}" for n in range(2, 99) if shard_of(f"c{n}", scene.shards) != shard_of("c1", scene.shards))
    elsewhere = {"customer_id": other, "terminal_id": "9"}
    scene.send([transaction(1, event_time_us=t), transaction(2, event_time_us=t - DAY_US)])
    scene.send([transaction(20, event_time_us=t, **elsewhere)])
    first = scene.worker()
    scene.settled()
    # Both stages keep their clocks across a restart, the re-key stage in Kafka.
    assert first.stop() == 0
    scene.send([transaction(21, event_time_us=t - DAY_US - 1, **elsewhere)])
    scene.send(
        [
            transaction(3, event_time_us=t - DAY_US - 1),  # late
            transaction(4, event_time_us=t + 31 * DAY_US + 1),  # future; moves the clock by a step all the same
            transaction(5, event_time_us=t + DAY_US),  # so that this one is late
            transaction(6, event_time_us=t + 31 * DAY_US),
            transaction(6, event_time_us=t + 31 * DAY_US, amount=9),  # the same id with other content
            transaction(6, event_time_us=t + 31 * DAY_US),  # only said again
        ]
    )
    # What a gateway appended before the verdict is forgotten too.
    tail = names.tail_prefix(scene.plan.entities[0].name, shard_of("c1", scene.shards), "customer") + "c1"
    for n in (3, 4, 6):
        scene.redis.hset(tail, tail_field(id64(f"t-{n}")), b"entry")
    meta = names.meta(scene.plan.entities[0].name, shard_of("c1", scene.shards), "1")
    scene.redis.hset(meta, "tails", 3)
    scene.worker("second")
    scene.settled()
    assert {e[1] for e in scene.points("terminal")["9"][0]} == {id64("t-20")}
    assert {e[1] for e in scene.points("customer")[other][0]} == {id64("t-20")}
    letters = {letter.offset: letter for letter in scene.letters() if letter.key != other.encode()}
    assert {o: (x.reason, x.field) for o, x in letters.items()} == {
        2: ("late", "event_time_us"),
        3: ("future", "event_time_us"),
        4: ("late", "event_time_us"),
        6: ("id_conflict", ""),
    }
    assert letters[6].value == transaction(6, event_time_us=t + 31 * DAY_US, amount=9).SerializeToString()
    assert scene.points("customer")["c1"][0] == {(t + 31 * DAY_US, id64("t-6"), 106)}
    assert {e[:2] for e in scene.points("terminal")["7"][0]} == {(t + 31 * DAY_US, id64("t-6"))}
    assert scene.redis.hlen(tail) == 0
    assert scene.redis.hget(meta, "tails") == b"0"


def test_sigterm_in_the_middle_of_a_load(new_scene: NewScene) -> None:
    load = Load.make(8_000, seed=2)
    scene = new_scene()
    scene.send(load.messages)
    worker = scene.worker(batch_rows=300)
    until(lambda: sum(int(m["offset"]) for m in scene.metas().values()) > 300, 30)
    assert worker.stop() == 0
    text = worker.log.read_text()
    assert '"exit_code": 0' in text
    assert all(json.loads(line)["component"] == "worker" for line in text.splitlines() if line.startswith("{"))
    # It left its groups, so the next one has the shards at once and goes on where it was.
    offsets = {k: int(m["offset"]) for k, m in scene.metas().items()}
    scene.worker("next")
    scene.settled()
    assert all(int(m["offset"]) >= offsets[k] for k, m in scene.metas().items())
    assert not scene.letters()


def test_an_owner_that_was_robbed_takes_its_shards_back(new_scene: NewScene) -> None:
    scene = new_scene()
    worker = scene.worker()
    scene.send([transaction(1)])
    scene.settled()
    thief = StateWriter(redis.Redis.from_url(scene.redis_url), scene.plan, "thief")
    entity = scene.plan.entities[0].name
    topic_id = scene.metas()["customer", 0]["topic_id"]
    thief.claim(entity, scene.topics[0], topic_id, range(scene.shards))
    scene.send([transaction(2)])
    until(lambda: scene.metric(worker, "trine_worker_refused_writes_total", status="fenced") >= scene.shards, 20)
    scene.settled()
    assert len(scene.points("customer")["c1"][0]) == 2


def test_a_damaged_state_halts_its_shard_alone(new_scene: NewScene) -> None:
    scene = new_scene()
    worker = scene.worker()
    scene.send([transaction(1), transaction(2, customer_id="c2", terminal_id="8")])
    scene.settled()
    home = shard_of("c1", scene.shards)
    assert home != shard_of("c2", scene.shards)
    key = names.state_prefix(scene.plan.entities[0].name, home, "1", "customer") + "c1"
    scene.redis.set(key, b"\x01damaged" + bytes(100))
    scene.send([transaction(3), transaction(4, customer_id="c2", terminal_id="8")])
    until(lambda: "shards" in _degraded(scene, worker.pid), 20)
    assert f"/{home}: " in _degraded(scene, worker.pid)["shards"]
    until(lambda: _count(scene, "c2") == 2, 20)
    assert scene.redis.get(key) == b"\x01damaged" + bytes(100)


def test_a_topic_made_anew_is_read_from_its_beginning(new_scene: NewScene) -> None:
    scene = new_scene()
    scene.worker()
    scene.send([transaction(n) for n in range(5)])
    scene.settled()
    with AdminClient({"bootstrap.servers": scene.bootstrap}) as admin:
        admin.delete_topics([scene.topics[0]])[scene.topics[0]].result(20)
        until(lambda: scene.topics[0] not in admin.list_topics(timeout=5).topics, 20)
    create_topics(scene.bootstrap, scene.shards, names=scene.topics[:1])
    scene.send([transaction(n) for n in range(5, 8)])
    until(lambda: _count(scene, "c1") == 8, 40)
    until(lambda: len(scene.points("terminal")["7"][0]) == 8, 40)


def test_events_missing_from_the_log_halt_the_shard(new_scene: NewScene) -> None:
    scene = new_scene()
    first = scene.worker()
    scene.send([transaction(1)])
    scene.settled()
    assert first.stop() == 0
    scene.send([transaction(2), transaction(3)])
    home = shard_of("c1", scene.shards)
    with AdminClient({"bootstrap.servers": scene.bootstrap}) as admin:
        at = TopicPartition(scene.topics[0], home, 2)
        admin.delete_records([at])[at].result(20)
    second = scene.worker("second")
    until(lambda: "shards" in _degraded(scene, second.pid), 20)
    assert "rebuild the state" in _degraded(scene, second.pid)["shards"]
    assert _count(scene, "c1") == 1


def test_starts_without_topics_and_waits_for_them(new_scene: NewScene) -> None:
    scene = new_scene()
    with AdminClient({"bootstrap.servers": scene.bootstrap}) as admin:
        for result in admin.delete_topics(list(scene.topics)).values():
            result.result(20)
        until(lambda: not set(scene.topics) & set(admin.list_topics(timeout=5).topics), 20)
    worker = scene.worker(wait=False)
    until(lambda: "does not exist" in _degraded(scene, worker.pid).get("topics", ""), 20)
    assert scene.health(worker, "livez") == 200
    assert scene.health(worker, "readyz") == 503
    create_topics(scene.bootstrap, scene.shards, names=scene.topics)
    scene.send([transaction(1)])
    scene.settled()
    assert scene.health(worker, "readyz") == 200


def test_starts_while_redis_is_away(new_scene: NewScene) -> None:
    scene = new_scene()
    worker = scene.worker(wait=False, redis_url="redis://127.0.0.1:9/0")
    until(lambda: "redis" in _degraded(scene, worker.pid), 20)
    assert worker.stop() == 0


def test_a_redis_that_evicts_is_refused_at_start(new_scene: NewScene, private_redis: PrivateRedis) -> None:
    worker = new_scene().worker(wait=False, redis_url=private_redis(maxmemory_policy="allkeys-lru").url)
    assert worker.wait(20) == 78
    assert "noeviction" in worker.log.read_text()


def test_refuses_to_start_with_a_plan_it_cannot_run(new_scene: NewScene) -> None:
    scene = new_scene()
    plan = scene.plan.to_json()
    plan["source"]["message"] = "trine.events.v1.DecisionRecord"
    (scene.folder / "plan.json").write_text(json.dumps(plan))
    worker = scene.worker(wait=False)
    assert worker.wait(20) == 78
    assert "DecisionRecord" in worker.log.read_text()
    (scene.folder / "plan.json").write_text("{}")
    assert scene.worker(wait=False).wait(20) == 78


def _count(scene: Scene, customer: str) -> int:
    return len(scene.points("customer", only=customer).get(customer, (set(), set()))[0])


def _degraded(scene: Scene, pid: int) -> dict[str, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{scene.ports[pid]}/readyz", timeout=2) as reply:
            body = reply.read()
    except urllib.error.HTTPError as error:
        body = error.read()
    except OSError:
        return {}
    found: dict[str, str] = json.loads(body)["degraded"]
    return found
