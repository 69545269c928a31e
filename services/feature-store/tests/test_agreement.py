"""The promise: whatever way events take through requests and worker, a request's vector is what the definition says of
all events so far. Random walks over requests, absorption, labels, repeats, takeovers and lost scripts, each request
against brute force.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from datetime import timedelta

import numpy as np
import pytest
import redis
from feature_store.admission import OK, RECORDED_UNKNOWN, judge
from feature_store.definitions import (
    Count,
    Entity,
    FeaturePlan,
    FeatureView,
    LabelSource,
    Mean,
    RequestFeature,
    Share,
    Source,
    Sum,
)
from feature_store.online import FeatureRequest, OnlineFeatures, Outcome
from feature_store.sharding import shard_of
from feature_store.updates import EventColumns, ShardUpdate, StateWriter, needs_tail
from tests.feature_oracle import Event, Report, vector, view_row

MINUTE = 60_000_000
HOUR, DAY = 60 * MINUTE, 24 * 60 * MINUTE
START = 1_700_000_000_000_000

CARD, SHOP = Entity("card", "card"), Entity("shop", "shop")
PAYMENTS = Source("payments", "m.Payment", "payments", key="card", id="id", time="at_us", fields=("amount", "tip"))
DISPUTES = LabelSource("disputes", "m.Dispute", "disputes", "id", "id", "at_us", "known_at_us", "bad", labels=PAYMENTS)
LATENESS = timedelta(hours=1)
PLAN = FeaturePlan(
    "walk",
    PAYMENTS,
    (RequestFeature("amount", "field", "amount"), RequestFeature("night", "night"), RequestFeature("off", "weekend")),
    (
        FeatureView(
            "card", CARD, PAYMENTS, (Count(), Sum("tip"), Mean("amount")),
            (timedelta(hours=1), timedelta(days=1)), lateness=LATENESS,
        ),
        FeatureView(
            "card_past", CARD, PAYMENTS, (Share(DISPUTES, "bad"), Mean("tip")), (timedelta(days=2),),
            delay=timedelta(hours=2), lateness=LATENESS,
        ),
        FeatureView("shop", SHOP, PAYMENTS, (Count(),), (timedelta(hours=6),), lateness=LATENESS),
        FeatureView(
            "shop_past", SHOP, PAYMENTS, (Count(), Share(DISPUTES, "bad")),
            (timedelta(days=1), timedelta(days=4)), delay=timedelta(days=1), lateness=LATENESS,
        ),
    ),
    max_step=timedelta(days=3),
)  # fmt: skip
ENTITIES = [e.name for e in PLAN.entities]


class Walk:
    """One Redis, one worker and two gateways' readers, and beside them plain lists of everything that happened."""

    def __init__(self, client: redis.Redis, stores: list[OnlineFeatures], shards: int, seed: int) -> None:
        self.client, self.stores, self.shards = client, stores, shards
        self.rng = np.random.default_rng(seed)
        self.now = START  # the newest event time anybody has sent
        self.log: dict[int, list[Event]] = {s: [] for s in range(shards)}  # by card's shard, in order of arrival
        self.judged: dict[int, int] = dict.fromkeys(range(shards), 0)
        self.seen: dict[str, Event] = {}  # appended or absorbed, and not dead
        self.admitted: set[str] = set()
        self.dead: set[str] = set()
        self.reports: list[Report] = []
        self.answered: list[FeatureRequest] = []
        self.checked = 0
        self.lives = 0
        self.take_over()

    def take_over(self) -> None:
        """A new life of the worker."""
        self.lives += 1
        self.writer = StateWriter(self.client, PLAN, f"life-{self.lives}")
        self.at = {}
        self.clock = {}
        for entity in ENTITIES:
            found = self.writer.claim(entity, PLAN.topic_of(entity), "tid", range(self.shards))
            self.at[entity] = {s: p.offset for s, p in found.items()}
            self.clock[entity] = {s: p.clock_us for s, p in found.items()}
            self.writer.heartbeat(entity, dict.fromkeys(range(self.shards), time.time_ns() // 1_000))

    def apply(self, entity: str, shard: int, parts: list[EventColumns], forget: Iterable[Event] = ()) -> None:
        at = self.at[entity][shard]
        lost = [(e.keys[entity], int(e.id)) for e in forget]
        clock = self.clock[entity][shard]
        (done,) = self.writer.apply(entity, [ShardUpdate(shard, at, at + 1, clock, at, parts, lost)])
        assert (done.status, done.conflicts) == ("ok", ())
        self.at[entity][shard] = done.offset

    def columns(self, entity: str, events: list[Event]) -> EventColumns:
        keys = sorted({e.keys[entity] for e in events})
        return EventColumns(
            "payments",
            keys,
            np.array([keys.index(e.keys[entity]) for e in events]),
            np.array([e.time_us for e in events]),
            np.array([int(e.id) for e in events]),
            {name: np.array([e.fields[name] for e in events]) for name in PAYMENTS.fields},
        )

    def absorb(self, shard: int, count: int) -> None:
        """The worker's next `count` events of a partition: judged there, then to the card's state and the shops'."""
        batch = self.log[shard][self.judged[shard] : self.judged[shard] + count]
        if not batch:
            return
        self.judged[shard] += len(batch)
        times = np.array([e.time_us for e in batch])
        recorded, clock = np.full(len(times), RECORDED_UNKNOWN), self.clock["card"][shard]
        verdicts, self.clock["card"][shard] = judge(times, recorded, clock, PLAN.lateness_us, PLAN.max_step_us)
        good = [e for e, v in zip(batch, verdicts.tolist(), strict=True) if v == OK]
        bad = [e for e, v in zip(batch, verdicts.tolist(), strict=True) if v != OK and e.id not in self.admitted]
        self.apply("card", shard, [self.columns("card", good)] if good else [], bad)
        for s in range(self.shards):
            there = [e for e in good if shard_of(e.keys["shop"], self.shards) == s]
            gone = [e for e in bad if shard_of(e.keys["shop"], self.shards) == s]
            if there or gone:
                self.apply("shop", s, [self.columns("shop", there)] if there else [], gone)
        for e in good:
            self.admitted.add(e.id)
            self.seen[e.id] = e
            self.now = max(self.now, e.time_us)
        for e in bad:
            self.dead.add(e.id)
            self.seen.pop(e.id, None)

    def some_time(self, shard: int) -> int:
        r = self.rng.random()
        if r < 0.15:
            return self.now  # a tie
        if r < 0.35:
            return self.now - int(self.rng.integers(0, HOUR + 1))
        if r < 0.40 and self.shards == 1:
            return self.now - int(self.rng.integers(HOUR, 2 * DAY))  # late, unless the worker is that far behind
        if r < 0.45:
            # On the border of a window of an event that was.
            old = list(self.seen.values())
            if old:
                e = old[int(self.rng.integers(len(old)))]
                spans = [v.delay_us + w for v in PLAN.views for w in (0, *v.windows_us)]
                at = e.time_us + int(self.rng.choice(spans)) + int(self.rng.integers(-1, 2))
                if at >= self.now - HOUR:
                    return at
        if r < 0.5:
            return self.now + int(self.rng.integers(0, 2 * DAY))
        if r < 0.52:
            return self.now + int(self.rng.integers(3 * DAY, 5 * DAY))
        return self.now + int(self.rng.integers(0, 2 * HOUR))

    async def request(self, size: int) -> None:
        events: list[Event] = []
        while len(events) < size:
            card = f"C{self.rng.integers(6)}"
            shard = shard_of(card, self.shards)
            e = Event(
                str(int(self.rng.integers(10**6)) * 1_000 + len(self.seen) + len(events)),
                self.some_time(shard),
                {"card": card, "shop": f"S{self.rng.integers(4)}"},
                {"amount": int(self.rng.integers(1, 10**12)), "tip": int(self.rng.integers(0, 50))},
            )
            if e.id not in self.seen and e.id not in self.dead:
                events.append(e)
        newest = max(e.time_us for e in events)
        # Partitions (of cards) are taken to be no further apart than the lateness: a shop hears of all of them.
        events = [e for e in events if e.time_us > newest - (DAY if self.shards == 1 else HOUR)]
        # A view without a tail relies on the worker being less than its delay behind.
        for s, log in self.log.items():
            if any(e.time_us <= newest - DAY for e in log[self.judged[s] :]):
                self.absorb(s, len(log))
        race = self.rng.random() < 0.1
        if race:  # Kafka and the worker are quicker than the read
            for e in events:
                s = shard_of(e.keys["card"], self.shards)
                self.log[s].append(e)
                self.absorb(s, len(self.log[s]))
            if any(e.id in self.dead for e in events):
                return
        asked = [self.asked(e) for e in events]
        read = await self.stores[int(self.rng.integers(len(self.stores)))].read_and_append(asked)
        for i, (e, r) in enumerate(zip(events, asked, strict=True)):
            clock = self.clock["card"][shard_of(e.keys["card"], self.shards)]
            late = clock >= 0 and e.time_us < clock - HOUR
            future = clock >= 0 and e.time_us > clock + 3 * DAY
            expected = Outcome.LATE if late else Outcome.FUTURE if future else Outcome.NEW
            assert read.outcomes[i] == expected, (e, clock)
            if expected != Outcome.NEW:
                continue
            assert read.usable[i]
            self.seen[e.id] = e
            if not race:
                self.log[shard_of(e.keys["card"], self.shards)].append(e)
            self.now = max(self.now, e.time_us)
            self.answered.append(r)
            right = vector(PLAN, self.seen.values(), self.reports, e)
            wrong = {n: (a, b) for n, a, b in zip(PLAN.features, read.vectors[i], right, strict=True) if a != b}
            assert read.vectors[i].tobytes() == right.tobytes(), (
                f"{e} of {[o.id for o in events]} got (not right): {wrong}"
            )
            for view, made_of in zip(PLAN.views, read.inputs[i], strict=True):
                key = e.keys[view.entity.name]
                others = [o for o in self.seen.values() if o.keys[view.entity.name] == key and o.id != e.id]
                if not needs_tail(view):
                    others = [o for o in others if o.id in self.admitted]
                assert made_of.known or not [o for o in others if o.time_us > self.now - view.retention_us]
                assert others or not made_of.known
            self.checked += 1

    def asked(self, e: Event) -> FeatureRequest:
        return FeatureRequest(e.id, e.time_us, e.keys, e.fields, hashlib.md5(repr(e).encode()).digest())

    async def repeat(self) -> None:
        if not self.answered:
            return
        r = self.answered[int(self.rng.integers(len(self.answered)))]
        store = self.stores[int(self.rng.integers(len(self.stores)))]
        if self.rng.random() < 0.5:
            await store.remember([(r.event_id, r.fingerprint, b"reply " + r.event_id.encode())])
            read = await store.read_and_append([r])
            assert (read.outcomes, read.replies) == ([Outcome.REPEATED], [b"reply " + r.event_id.encode()])
        else:
            read = await store.read_and_append([r])
            assert read.outcomes in ([Outcome.PENDING], [Outcome.REPEATED])

    def label(self) -> None:
        """Something becomes known of an event: absorbed before it, late, again, or of one that nobody saw."""
        sent = [e for log in self.log.values() for e in log]
        if not sent:
            return
        e = sent[int(self.rng.integers(max(0, len(sent) - 40), len(sent)))]
        known = self.now + int(self.rng.choice([0, 0, HOUR, -HOUR, 5 * HOUR]))
        report = Report(e.id, known, bool(self.rng.random() < 0.7), e.time_us)
        self.reports.append(report)
        for entity in ENTITIES:
            one = np.array([0])
            part = EventColumns(
                "disputes",
                [e.keys[entity]],
                one,
                one + e.time_us,
                one + int(e.id),
                {"value": one + report.value},
                one + known,
            )
            self.apply(entity, shard_of(e.keys[entity], self.shards), [part] * int(self.rng.integers(1, 3)))

    def again(self) -> None:
        """An event that was absorbed comes at a new offset."""
        for s, log in self.log.items():
            done = [
                e for e in log[: self.judged[s]] if e.id in self.admitted and e.time_us >= self.clock["card"][s] - HOUR
            ]
            if done:
                e = done[int(self.rng.integers(len(done)))]
                log.insert(self.judged[s] + int(self.rng.integers(0, len(log) - self.judged[s] + 1)), e)

    async def look(self) -> None:
        """What people read is the same: as of now, tails included."""
        keys = [f"C{i}" for i in range(7)]
        found = await self.stores[0].read("card", keys, self.now)
        view = PLAN.views[0]
        for key, entity in zip(keys, found, strict=True):
            right = view_row(view, self.seen.values(), self.reports, key, self.now)
            assert list(entity.features.values()) == right


@pytest.mark.parametrize(("shards", "seed"), [(1, 1), (1, 2), (1, 3), (3, 4), (3, 5), (3, 6)])
async def test_a_request_sees_all_events_so_far_whatever_way_they_took(redis_url: str, shards: int, seed: int) -> None:
    client = redis.Redis.from_url(redis_url)
    stores = [await OnlineFeatures.connect(redis_url, PLAN, shards, timeout_s=5.0, lease_ms=60_000) for _ in range(2)]
    walk = Walk(client, stores, shards, seed)
    for _ in range(220):
        r = walk.rng.random()
        if r < 0.50:
            await walk.request(1)
        elif r < 0.58:
            await walk.request(int(walk.rng.integers(2, 40)) if r < 0.51 else int(walk.rng.integers(2, 5)))
        elif r < 0.76:
            walk.absorb(int(walk.rng.integers(shards)), int(walk.rng.integers(1, 12)))
        elif r < 0.86:
            walk.label()
        elif r < 0.90:
            await walk.repeat()
        elif r < 0.93:
            walk.again()
        elif r < 0.95:
            zombie = walk.writer
            walk.take_over()
            done = zombie.apply("card", [ShardUpdate(0, walk.at["card"][0], 10**9, 0, 0, [])])
            assert done[0].status == "fenced"
        elif r < 0.96:
            client.script_flush()
        elif r < 0.98:
            await walk.look()
        else:
            await stores[0].remember([])
    assert (walk.checked > 50, len(walk.admitted) > 20) == (True, True), (walk.checked, len(walk.admitted))
    for store in stores:
        await store.close()
    client.close()
