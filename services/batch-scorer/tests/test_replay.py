"""Replay against a plain simulation of gateway and worker: equal where nothing was touched, different where it was."""

from __future__ import annotations

import copy
import datetime as dt
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from batch_scorer.outcome import Replayed
from batch_scorer.replay import Replay, ServedRelease
from batch_scorer.vectors import Base
from feature_store.dataset import DAY_US
from feature_store.dataset_writer import DatasetWriter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_release import Release
from model_release.testing import write_toy_release
from tests.simulated_stack import DAY, FIRST_US, HOUR, PLAN, RECORDED_US, SHARDS, SimulatedStack, plain_score
from trine.events.v1.events_pb2 import DecisionRecord, ScoreSource, Transaction

from models.fraud.sources import FRAUD_REPORT_FILES, TRANSACTION_FILES

_CUSTOMERS, _TERMINALS = ("c0", "c1", "c2"), ("t0", "t1", "t2")


@pytest.fixture(scope="session")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    return write_toy_release(tmp_path_factory.mktemp("releases"), PLAN)


def _score(rows: np.ndarray) -> np.ndarray:
    return np.array([plain_score(row) for row in rows], dtype=np.float32)


def _replayed(stack: SimulatedStack, base: Base | None = None) -> tuple[Replay, list[Replayed]]:
    served = ServedRelease(stack.release, _score)
    replay = Replay(stack, lambda name: served if name == stack.release.id else None, base)
    return replay, list(replay.run())


def _transaction(number: int, customer: str, terminal: str, time_us: int, amount: int = 100) -> Transaction:
    # A third of the ids is no number: those order by their hash.
    name = str(number) if number % 3 else f"tx-{number}"
    return Transaction(
        transaction_id=name, event_time_us=time_us, customer_id=customer, terminal_id=terminal, amount=amount,
        currency="EUR",
    )  # fmt: skip


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[object, ...]]:
    """What happens, in order. Event times mostly go on, with ties, late ones and jumps ahead."""
    steps: list[tuple[object, ...]] = []
    now = FIRST_US
    for number in range(draw(st.integers(5, 60))):
        now += draw(st.sampled_from((0, 0, HOUR // 2, 2 * HOUR, 9 * HOUR)))
        at = now + draw(st.sampled_from((0, 0, 0, 0, 0, -HOUR, -5 * HOUR, -8 * HOUR, 20 * HOUR, 60 * HOUR)))
        where = (draw(st.sampled_from(_CUSTOMERS)), draw(st.sampled_from(_TERMINALS)))
        t = _transaction(number, *where, at, draw(st.integers(1, 30_000)))
        kind = draw(st.sampled_from(("request", "request", "request", "produce", "rules", "lost", "no_features")))
        steps.append((kind, t, draw(st.booleans())))
        if draw(st.integers(0, 3)) == 0:
            steps.append(("report", t, at + draw(st.integers(0, 40)) * HOUR, draw(st.booleans())))
        if draw(st.integers(0, 8)) == 0:
            steps.append(("produce", t, False))  # the same event again, at a new offset
        if draw(st.integers(0, 15)) == 0:
            # A date that nobody can mean.
            far = _transaction(1_000 + number, *where, RECORDED_US + 50 * DAY)
            steps.append(("produce", far, False))
        if draw(st.booleans()):
            steps.append(("rekey", draw(st.integers(0, SHARDS - 1)), draw(st.integers(1, 6))))
        if draw(st.booleans()):
            entity = draw(st.sampled_from(("customer", "terminal")))
            steps.append(("absorb", entity, draw(st.integers(0, SHARDS - 1)), draw(st.integers(1, 6))))
    return steps


def _play(stack: SimulatedStack, steps: list[tuple[object, ...]]) -> SimulatedStack:
    acts: dict[object, Callable[..., None]] = {
        "request": stack.request,
        "produce": lambda t, _: stack.produce(t),
        "rules": lambda t, first: stack.request(t, first, by_rules=True),
        "lost": lambda t, first: stack.request(t, first, lost="terminal"),
        "no_features": lambda t, _: stack.request_without_features(t),
        "report": stack.report,
        "rekey": stack.rekey,
        "absorb": stack.absorb,
    }
    for kind, *what in steps:
        acts[kind](*what)
    return stack


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=histories())
def test_what_the_services_decided_is_equal(release: Release, steps: list[tuple[object, ...]]) -> None:
    stack = _play(SimulatedStack(release), steps)
    replay, found = _replayed(stack)
    assert [str(d) for r in found for d in r.differences] == []
    assert replay.report.equal == replay.report.decisions == len(stack.records)


def _tampered(record: DecisionRecord, change: str) -> None:
    """Change one thing that replay answers for."""
    if change == "verdict":
        record.verdict = record.verdict % 3 + 1  # type: ignore[assignment]
    elif change == "score":
        record.score = float(np.nextafter(np.float32(record.score), np.float32(2)))
    elif change.startswith("vector"):
        i = int(change.removeprefix("vector"))
        record.vector[i] = float(np.nextafter(np.float32(record.vector[i]), np.float32(1e9)))
    elif change == "source":
        record.source = ScoreSource.SCORE_SOURCE_BATCH_SCORE
    elif change == "rules":
        record.rules.append("large")
    elif change == "release":
        record.release = "fraud-000000000000"
    elif change == "decision_id":
        record.decision_id += "x"
    elif change == "transaction.amount":
        record.transaction.amount += 1
    elif change == "transaction.currency":
        record.transaction.currency = "USD"
    elif change == "transaction":
        record.transaction.transaction_id = record.decision_id = "unheard-of"
    elif change == "fallback_reason":
        record.fallback_reason = "" if record.fallback_reason else "deadline"
    else:
        view, name = change.removeprefix("inputs.").split(".")
        read = next(v for v in record.inputs if v.view == view)
        if name == "tail_ids":
            read.tail_ids.append(123_456_789)
        elif name == "known":
            read.known = not read.known
        elif name in ("offset", "partition"):
            setattr(read, name, getattr(read, name) + 1_000)
        else:
            setattr(read, name, getattr(read, name) + "9")


_CHANGES = [
    "verdict", "score", *[f"vector{i}" for i in range(len(PLAN.features))], "source", "rules", "release", "decision_id",
    "transaction.amount", "transaction.currency", "transaction", "fallback_reason",
    *[f"inputs.{v}.{n}" for v in ("customer", "busy")
      for n in ("key", "topic", "topic_id", "entity", "partition", "offset", "tail_ids", "known", "state_version")],
]  # fmt: skip


@pytest.mark.parametrize("change", _CHANGES)
def test_a_touched_record_is_different_and_names_the_field(release: Release, change: str) -> None:
    stack = SimulatedStack(release)
    for i in range(40):
        stack.request(_transaction(i, f"c{i % 3}", f"t{i % 2}", FIRST_US + i * HOUR, 500 + i), i % 2 == 0, i % 4 == 3)
        stack.rekey(i % 2, 3)
        stack.absorb("customer", i % 2, 2)
        stack.absorb("terminal", i % 2, 1)
    assert _replayed(stack)[0].report.different == 0
    touched = copy.deepcopy(stack.records[30])
    _tampered(touched, change)
    stack.records[30] = touched

    replay, found = _replayed(stack)
    assert replay.report.different == 1
    (different,) = (r for r in found if not r.equal)
    assert different.decision_id == touched.decision_id
    named = {d.field for d in different.differences}
    if change.startswith("vector"):
        change = f"vector.{PLAN.features[int(change.removeprefix('vector'))]}"
        (vector,) = (d for d in different.differences if d.field == change)
        assert vector.by is not None
        assert 0 < abs(vector.by) < 1e-2
    assert change in named


def test_an_event_that_was_left_out_or_comes_too_much_changes_the_vector(release: Release) -> None:
    stack = SimulatedStack(release)
    for i in range(8):
        stack.request(_transaction(i, "c0", "t0", FIRST_US + i * HOUR), True)
    log = stack.log[next(p for p in stack.log if stack.log[p])]
    del log[3]
    replay, found = _replayed(stack)
    assert replay.report.different == 5  # the event's own decision, and the four that had it in their tail
    assert "not in the archive" in str(found[3].differences[0])


def test_an_archive_that_ends_too_early_is_told(release: Release) -> None:
    stack = SimulatedStack(release)
    stack.request(_transaction(1, "c0", "t0", FIRST_US), True)
    stack.records[0].inputs[0].offset = 7
    _, (found,) = _replayed(stack)
    assert "ends there" in str(found.differences[0])


def test_a_record_that_came_twice_counts_once_and_two_decisions_on_one_event_both(release: Release) -> None:
    stack = SimulatedStack(release)
    stack.request(_transaction(1, "c0", "t0", FIRST_US), True)
    stack.records.append(copy.deepcopy(stack.records[0]))
    again = copy.deepcopy(stack.records[0])
    again.decided_at_us = 5
    stack.records.append(again)
    replay, found = _replayed(stack)
    assert (len(found), replay.report.repeated, replay.report.different) == (2, 1, 0)


def test_decisions_of_some_days_alone(release: Release) -> None:
    stack = SimulatedStack(release)
    for i in range(6):
        stack.request(_transaction(i + 1, "c0", "t0", FIRST_US + i * HOUR), True)
    replay = Replay(stack, lambda _: ServedRelease(release, _score))
    found = list(replay.run(from_us=FIRST_US + HOUR, to_us=FIRST_US + 3 * HOUR))
    assert [r.decision_id for r in found] == [r.decision_id for r in stack.records[1:3]]
    assert all(r.equal for r in found)


def test_a_rebuilt_state_needs_its_history(release: Release, tmp_path: Path) -> None:
    """The stream goes over events that the history had already; rows from the cut on are not part of it."""
    cut = (FIRST_US // DAY + 3) * DAY
    times = [cut + h * HOUR for h in range(-50, 3, 2)]
    history = [_transaction(i + 1, f"c{i % 3}", f"t{i % 2}", at, 100 + i) for i, at in enumerate(times)]
    reports = [(t, t.event_time_us + (k % 5) * 9 * HOUR, k % 2 == 0) for k, t in enumerate(history)]
    dataset = _written(tmp_path / "history", history, reports)

    stack = SimulatedStack(release)
    before = [t for t in history if t.event_time_us < cut]
    stack.start_from(before, [r for r in reports if r[0] in before and r[1] < cut])
    for t in history[20:]:
        stack.produce(t)
        stack.rekey(0, 2)
        stack.rekey(1, 2)
    for report in reports:
        if report[1] >= cut:
            stack.report(*report)
    for i in range(30):
        stack.request(_transaction(100 + i, f"c{i % 4}", f"t{i % 3}", cut + i * HOUR, 900 + i), True)
        stack.absorb("customer", i % 2, 2)
        stack.rekey(i % 2, 2)
        stack.absorb("terminal", i % 2, 1)

    replay, found = _replayed(stack, Base(dataset, cut))
    assert [str(d) for r in found for d in r.differences] == []
    assert len(found) == 30
    replay, _ = _replayed(stack)
    assert replay.report.different == 30
    assert "--transactions" in str(replay.report.examples[0].differences[0])
    replay, _ = _replayed(stack, Base(dataset, cut - 12 * HOUR))
    assert replay.report.different > 0


def _written(target: Path, transactions: list[Transaction], reports: list[tuple[Transaction, int, bool]]) -> Path:
    with DatasetWriter(target) as writer:
        for day in sorted({t.event_time_us // DAY_US for t in transactions}):
            rows = sorted((t for t in transactions if t.event_time_us // DAY_US == day), key=lambda t: t.event_time_us)
            writer.write_day(TRANSACTION_FILES, day * DAY_US, pa.table({
                "transaction_id": [t.transaction_id for t in rows],
                "event_time": [_moment(t.event_time_us) for t in rows],
                "customer_id": [t.customer_id for t in rows],
                "terminal_id": [t.terminal_id for t in rows],
                "amount": [t.amount for t in rows],
                "currency": [t.currency for t in rows],
            }))  # fmt: skip
        for day in sorted({known // DAY_US for _, known, _ in reports}):
            told = sorted(((t, k, f) for t, k, f in reports if k // DAY_US == day), key=lambda r: r[1])
            writer.write_day(FRAUD_REPORT_FILES, day * DAY_US, pa.table({
                "transaction_id": [t.transaction_id for t, _, _ in told],
                "reported_at": [_moment(k) for _, k, _ in told],
                "fraud": [f for _, _, f in told],
                "scenario": pa.array([0] * len(told), pa.int32()),
            }))  # fmt: skip
        writer.finish({"made_by": "a test"})
    return target


def _moment(us: int) -> dt.datetime:
    return dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(microseconds=us)
