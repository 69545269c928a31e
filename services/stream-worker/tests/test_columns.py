"""Messages to columns and back: array operations say what one message at a time would."""

from __future__ import annotations

import numpy as np
import pytest
from feature_store.admission import UNSET_CLOCK
from feature_store.ids import id64
from feature_store.sharding import shard_of
from feature_store.validation import first_problem
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from stream_worker import entity_batch
from stream_worker.batches import direct_batch
from stream_worker.dead_letters import MAX_VALUE_BYTES, Letter
from stream_worker.entity_batch import BatchMalformed
from stream_worker.intake import Messages, Rows, ids_of, take_in
from stream_worker.progress import Checkpoint, ProgressTracker, RekeyNote
from stream_worker.shards import Shard
from stream_worker.state_stage import adapted
from stream_worker.streams import PlanStreams
from stream_worker.wire import MessageLayout, TextColumn, decode
from tests.stream_scene import DAY_US, START_US, make_plan
from trine.events.v1.events_pb2 import DeadLetter, EntityBatch, FraudReport, Transaction

SHARDS = 4
RECORDED_US = START_US + 1_300 * DAY_US
STREAMS = PlanStreams.of(make_plan("t"))
TRANSACTIONS, REPORTS = STREAMS.sources["t.transactions"], STREAMS.sources["t.fraud-reports"]
TARGET = next(iter(STREAMS.derived.values()))

TEXTS = st.one_of(
    st.integers(0, 10**19).map(str),
    st.from_regex(r"[A-Za-z0-9._:-]{1,64}", fullmatch=True),
    st.sampled_from(
        ["", "0", "007", "c1", "c2", "a b", "x" * 65, "x" * 200, "ä", "EUR", "eur", "-1", "9" * 18, "9" * 19]
    ),
)
INT64 = st.one_of(
    st.integers(-(2**63), 2**63 - 1), st.integers(0, 10**6), st.integers(START_US, START_US + 99 * DAY_US)
)
TRANSACTION = st.builds(
    Transaction,
    transaction_id=TEXTS,
    event_time_us=INT64,
    customer_id=TEXTS,
    terminal_id=TEXTS,
    amount=st.none() | INT64,
    currency=st.sampled_from(["EUR", "USD", "", "XXX", "euro", "ä"]),
)
REPORT = st.builds(
    FraudReport,
    transaction_id=TEXTS,
    reported_at_us=INT64,
    fraud=st.booleans(),
    scenario=st.integers(-(2**31), 2**31 - 1),
    customer_id=TEXTS,
    terminal_id=TEXTS,
    event_time_us=INT64,
)


@st.composite
def wire_values(
    draw: st.DrawFn, message: st.SearchStrategy[Transaction] | st.SearchStrategy[FraudReport]
) -> bytes | None:
    """A serialised message: whole, or with something unusual done to it; or no message at all."""
    raw = draw(message).SerializeToString()
    kind = draw(st.sampled_from(["whole"] * 6 + ["cut", "unknown", "twice", "reversed", "garbage", "none"]))
    if kind == "cut":
        return raw[: draw(st.integers(0, len(raw)))]
    if kind == "unknown":
        return raw + b"\x7a\x03abc" + b"\xa0\x06\x01"
    if kind == "twice":
        return raw + draw(message).SerializeToString()
    if kind == "reversed":
        return b"\x22\x01z" + raw
    if kind == "garbage":
        return draw(st.binary(max_size=40))
    return None if kind == "none" else raw


def given_fields(message: Transaction | FraudReport, layout: MessageLayout) -> dict[str, int | str | None]:
    """A message's fields; None: missing, where the contract tells that from 0."""
    fields = message.DESCRIPTOR.fields_by_name
    missing = {f.name for f in layout.fields if fields[f.name].has_presence and not message.HasField(f.name)}  # type: ignore[arg-type]  # names of its own fields
    return {f.name: None if f.name in missing else getattr(message, f.name) for f in layout.fields}


@pytest.mark.parametrize(("kind", "strategy"), [(Transaction, TRANSACTION), (FraudReport, REPORT)])
def test_decoded_as_protobuf_does(
    kind: type[Transaction] | type[FraudReport], strategy: st.SearchStrategy[Transaction]
) -> None:
    layout = MessageLayout.of(kind.DESCRIPTOR)

    @settings(deadline=None, max_examples=150)
    @given(st.lists(wire_values(strategy), max_size=20))
    def check(values: list[bytes | None]) -> None:
        found = decode(values, layout)
        for row, value in enumerate(values):
            try:
                if value is None:
                    raise DecodeError
                message = kind.FromString(value)
            except DecodeError:
                assert row in found.malformed or any("\\x" in str(text) for text in found.values(row).values())
                continue
            assert row not in found.malformed
            assert found.values(row) == given_fields(message, layout)

    check()


@given(st.lists(TEXTS, max_size=30))
@settings(deadline=None)
def test_ids_of_a_column(texts: list[str]) -> None:
    raw = [t.encode() for t in texts]
    ends = np.cumsum([0, *map(len, raw)])
    column = TextColumn(np.frombuffer(b"".join(raw), dtype=np.uint8), ends[:-1], np.diff(ends))
    assert ids_of(column).tolist() == [id64(t) for t in texts]


def batch(topic: str, entries: list[tuple[int, int, bytes | None]]) -> Messages:
    """Messages of (partition, offset, value)."""
    partition = np.array([p for p, _, _ in entries], dtype=np.int64)
    offset = np.array([o for _, o, _ in entries], dtype=np.int64)
    last = {p: 1_000_000 + o for p, o, _ in entries}
    return Messages(
        topic,
        partition,
        offset,
        np.full(len(entries), RECORDED_US),
        last,
        [None] * len(entries),
        [v for _, _, v in entries],
    )


def good(n: int, **changes: object) -> Transaction:
    values: dict[str, object] = {
        "transaction_id": str(n),
        "event_time_us": START_US + n * 3_600_000_000,
        "customer_id": f"c{n % 7}",
        "terminal_id": str(n % 5),
        "amount": 1 + n,
        "currency": "EUR",
    }
    return Transaction(**{**values, **changes})  # type: ignore[arg-type]


def log_of(messages: list[Transaction]) -> list[tuple[int, int, bytes | None]]:
    """Each message at the next offset of its key's partition."""
    ends = [0] * SHARDS
    out: list[tuple[int, int, bytes | None]] = []
    for m in messages:
        p = shard_of(m.customer_id, SHARDS)
        out.append((p, ends[p], m.SerializeToString()))
        ends[p] += 1
    return out


MIXED = st.lists(
    st.one_of(
        st.integers(0, 400).map(good),
        st.integers(0, 3000).map(lambda n: good(n, event_time_us=START_US + n * 36_000_000_000)),
        st.integers(0, 50).map(lambda n: good(n, event_time_us=RECORDED_US + (25 + n // 4) * DAY_US + n)),
        st.integers(0, 50).map(lambda n: good(n, amount=0)),
        st.integers(0, 50).map(lambda n: good(n, amount=None)),
        st.integers(0, 50).map(lambda n: good(n, amount=-1)),
    ),
    max_size=40,
)


@given(MIXED, st.integers(0, 40))
@settings(deadline=None)
def test_taken_in_the_same_however_cut(messages: list[Transaction], cut: int) -> None:
    def run(
        pieces: list[list[tuple[int, int, bytes | None]]],
    ) -> tuple[set[tuple[int, ...]], set[tuple[object, ...]], object]:
        clocks: dict[int, int] = {}
        rows_found: set[tuple[int, ...]] = set()
        refused_found: set[tuple[object, ...]] = set()
        for piece in pieces:
            if not piece:
                continue
            taken = batch("t.transactions", piece)
            rows, refused = take_in(
                taken, TRANSACTIONS, ["customer_id", "terminal_id"], clocks, SHARDS, DAY_US, 31 * DAY_US
            )
            for i, row in enumerate(rows.row.tolist()):
                key = rows.keys["terminal_id"]
                at = int(rows.partition[i]), int(taken.offset[row])
                rows_found.add((*at, int(rows.time_us[i]), int(rows.id[i]), int(key.values[key.index[i]])))
            refused_found |= {(taken.partition[r.row], taken.offset[r.row], r.reason, r.field) for r in refused}
        return rows_found, refused_found, clocks

    entries = log_of(messages)
    whole = run([entries])
    assert run([entries[:cut], entries[cut:]]) == whole
    assert run([[entry] for entry in entries]) == whole
    # And as one message at a time would be judged.
    clocks: dict[int, int] = {}
    for (p, offset, _), m in zip(entries, messages, strict=True):
        problem = first_problem(given_fields(m, TRANSACTIONS.layout))
        clock = clocks.get(p, UNSET_CLOCK)
        expected: tuple[object, ...] | None = None
        if problem is not None:
            expected = (p, offset, "invalid", problem.field)
        elif m.event_time_us > RECORDED_US + 31 * DAY_US:
            expected = (p, offset, "future", "event_time_us")
        elif clock == UNSET_CLOCK:
            clocks[p] = m.event_time_us
        elif m.event_time_us > clock + 31 * DAY_US:
            expected, clocks[p] = (p, offset, "future", "event_time_us"), clock + 31 * DAY_US
        elif m.event_time_us < clock - DAY_US:
            expected = (p, offset, "late", "event_time_us")
        else:
            clocks[p] = max(clock, m.event_time_us)
        if expected is None:
            row = (p, offset, m.event_time_us, id64(m.transaction_id), int(m.terminal_id))
            assert row in whole[0]
        else:
            assert expected in whole[1]
    assert len(whole[0]) + len(whole[1]) == len(messages)
    assert isinstance(whole[2], dict)
    assert {p: c for p, c in whole[2].items() if c != UNSET_CLOCK} == clocks


def taken(messages: list[Transaction]) -> tuple[Messages, Rows]:
    found = batch("t.transactions", log_of(messages))
    rows, refused = take_in(found, TRANSACTIONS, ["terminal_id"], {}, SHARDS, DAY_US, 31 * DAY_US)
    assert not refused
    return found, rows


def test_rekeyed_rows_come_out_as_they_went_in() -> None:
    messages, rows = taken([good(n) for n in range(60)])
    reports = [
        FraudReport(
            transaction_id=str(n),
            reported_at_us=START_US + (n + 30) * 3_600_000_000,
            fraud=n % 2 == 0,
            customer_id="c1",
            terminal_id=str(n % 5),
            event_time_us=START_US + n * 3_600_000_000,
        ).SerializeToString()
        for n in range(10)
    ]
    labels = batch("t.fraud-reports", [(n % SHARDS, n // SHARDS, value) for n, value in enumerate(reports)])
    label_rows, _ = take_in(labels, REPORTS, ["terminal_id"], {}, SHARDS, DAY_US, 31 * DAY_US)
    both = [(TRANSACTIONS, messages, rows), (REPORTS, labels, label_rows)]
    events_found, labels_found = set(), set()
    sent = list(entity_batch.encode(TARGET, both, SHARDS))
    assert len({shard for shard, _, _ in sent}) == len(sent)
    assert sum(count for _, _, count in sent) == 70
    for shard, value, _ in sent:
        for part in entity_batch.joined(entity_batch.decode(value, TARGET, shard, SHARDS) * 2):
            c = part.columns
            for i, index in enumerate(c.key_index.tolist()):
                key = c.keys[index]
                assert shard_of(key, SHARDS) == shard
                if c.known_at_us is None:
                    events_found.add((key, int(c.time_us[i]), int(c.id[i]), part.origin_topic))
                else:
                    value_found = int(c.fields["value"][i])
                    labels_found.add((key, int(c.id[i]), int(c.known_at_us[i]), value_found))
    hour = 3_600_000_000
    assert events_found == {(str(n % 5), START_US + n * hour, n, "t.transactions") for n in range(60)}
    assert labels_found == {(str(n % 5), n, START_US + (n + 30) * hour, int(n % 2 == 0)) for n in range(10)}


def test_a_batch_that_is_not_one() -> None:
    messages, rows = taken([good(n) for n in range(10)])
    shard, value, _ = next(entity_batch.encode(TARGET, [(TRANSACTIONS, messages, rows)], SHARDS))
    sound = EntityBatch.FromString(value)

    def spoiled(text: str, change: object) -> None:
        copy = EntityBatch()
        copy.CopyFrom(sound)
        change(copy)  # type: ignore[operator]
        with pytest.raises(BatchMalformed, match=text):
            entity_batch.decode(copy.SerializeToString(), TARGET, shard, SHARDS)

    spoiled("entity is 'x'", lambda b: setattr(b, "entity", "x"))
    spoiled("distinct", lambda b: b.keys.append(b.keys[0]))
    spoiled(
        "belong to partition", lambda b: b.keys.append(next(str(n) for n in range(99) if shard_of(str(n), 4) != shard))
    )
    spoiled("source is 'x'", lambda b: setattr(b.parts[0], "source", "x"))
    spoiled("time_us has", lambda b: setattr(b.parts[0], "time_us", b"123"))
    spoiled("key_index", lambda b: b.ClearField("keys"))
    spoiled("known_at_us must", lambda b: setattr(b.parts[0], "known_at_us", b.parts[0].time_us))
    with pytest.raises(BatchMalformed, match=r"not a trine\.events"):
        entity_batch.decode(b"\xff", TARGET, shard, SHARDS)
    with pytest.raises(BatchMalformed, match="entity is ''"):
        entity_batch.decode(None, TARGET, shard, SHARDS)


def test_updates_of_a_batch_lie_in_their_shards() -> None:
    entries = log_of([good(n) for n in range(40)])
    shards = {p: Shard("customer-t", "t.transactions", p, 0, UNSET_CLOCK, 5, 0) for p in range(SHARDS)}
    made = direct_batch(batch("t.transactions", entries), TRANSACTIONS, shards, SHARDS, STREAMS.plan)
    assert sorted(u.shard for u in made.updates) == sorted({p for p, _, _ in entries})
    for update in made.updates:
        part = update.parts[0]
        assert {shard_of(key, SHARDS) for key in part.keys} == {update.shard}
        own = [Transaction.FromString(v or b"") for p, _, v in entries if p == update.shard]
        assert [part.keys[i] for i in part.key_index] == [m.customer_id for m in own]
        assert part.fields["amount"].tolist() == [m.amount for m in own]
        assert update.next_offset == len(own)
        assert update.clock_us == own[-1].event_time_us
        assert update.progress_us == 1_000_000 + len(own) - 1


def test_proofs_of_progress() -> None:
    tracker = ProgressTracker()
    for i in range(1, 400):
        tracker.add(Checkpoint({"t": i * 1000}, {"t": np.array([i, 2 * i])}))
    # Some are dropped on the way, never to say too much.
    for read in (1, 50, 200, 399):
        reached = tracker.reached_us("t", np.array([read, 2 * read]))
        assert (reached <= read * 1000).all()
    assert tracker.reached_us("t", np.array([399, 0])).tolist() == [399_000, 0]
    assert tracker.lag_events("t", np.array([390, 1000])).tolist() == [9, 0]
    assert tracker.reached_us("other", np.array([9, 9])).tolist() == [0, 0]
    tracker.clear()
    assert tracker.reached_us("t", np.array([999, 999])).tolist() == [0, 0]
    assert RekeyNote.of(RekeyNote(-1, 7).text()) == RekeyNote(-1, 7)
    assert RekeyNote.of("what is this") is None
    assert RekeyNote.of(None) is None


def test_batches_grow_until_they_hold_enough_rows() -> None:
    wanted = 100
    for _ in range(10):
        wanted = adapted(wanted, wanted, wanted, 5_000)
    assert 2_500 <= wanted <= 5_000
    assert adapted(wanted, 10, 10, 5_000) == wanted
    # Each message holds 300 rows all of a sudden.
    assert adapted(4_000, 4_000, 1_200_000, 6_000) == 64


def test_a_large_value_is_cut_in_its_letter() -> None:
    letter = Letter("t", 1, 2, "malformed", "", "not a message", b"k", b"v" * (MAX_VALUE_BYTES + 1))
    found = DeadLetter.FromString(letter.message())
    assert len(found.value) == MAX_VALUE_BYTES
    assert found.detail == f"not a message (the first {MAX_VALUE_BYTES} of its {MAX_VALUE_BYTES + 1} bytes are kept)"
    assert found.dead_letter_id == "t/1/2"
