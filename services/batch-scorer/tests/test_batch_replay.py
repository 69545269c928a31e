"""Replay of decisions that a batch run took part in: from the run's history alone, equal or different."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from batch_scorer.history import Folder, Manifest, Part, utc
from batch_scorer.replay import Replay, ServedRelease
from batch_scorer.run_risks import RunRisks
from feature_store.warehouse_store import WarehouseStore
from model_release import Release
from model_release.policy import BatchRisks, FallbackRules
from model_release.testing import toy_batch_policy, write_toy_release
from tests.simulated_stack import FIRST_US, HOUR, PLAN, SimulatedStack
from trine.events.v1.events_pb2 import DecisionRecord, ScoreSource, Transaction

RUN = "card-risk-20170714t000000-0123abcd"
RISKS = {"customer:c0": 0.125, "customer:c1": 0.001, "terminal:t0": 0.5, "terminal:t1": 0.03}


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    folder = tmp_path_factory.mktemp("releases")
    return write_toy_release(folder, PLAN, batch=toy_batch_policy("customer", "terminal"))


def write_run(warehouse: Path, risks: dict[str, float], run: str = RUN, manifest: bool = True) -> None:
    """Its history as the runner leaves it, in two parts."""
    folder = warehouse / "runs" / "card-risk" / run
    folder.mkdir(parents=True)
    parts = []
    for number, keys in enumerate((sorted(risks)[::2], sorted(risks)[1::2])):
        table = pa.table({
            "key": keys, "risk": pa.array([risks[k] for k in keys], pa.float32()),
            "transactions": pa.array([3] * len(keys), pa.int32()),
        })  # fmt: skip
        pq.write_table(table, folder / f"part-{number:05}.parquet")
        parts.append(Part(file=f"part-{number:05}.parquet", rows=len(keys), bytes=1))
    if manifest:
        Folder(WarehouseStore(warehouse), run).write_manifest(Manifest(
            run=run, job="card-risk", model="fraud", release="fraud-000000000000", cutoff=utc(FIRST_US),
            cutoff_us=FIRST_US, outcome="published", who="test", began=utc(time.time_ns() // 1_000),
            population=len(risks), rows=len(risks), blocks=1, parts=parts, checks=[], outputs={}, seconds={},
        ))  # fmt: skip


def decided(release: Release) -> SimulatedStack:
    """Decisions by rules; those whose customer or terminal the run knows then are by batch score, as a gateway's."""
    stack = SimulatedStack(release)
    customers, terminals = ("c0", "c1", "c2"), ("t0", "t1", "t2")
    for i in range(18):
        t = Transaction(
            transaction_id=str(i + 1), event_time_us=FIRST_US + i * HOUR, customer_id=customers[i % 3],
            terminal_id=terminals[i // 3 % 3], amount=100 if i % 4 else 30_000, currency="EUR",
        )  # fmt: skip
        if i % 5 == 4:
            stack.request_without_features(t)
        else:
            stack.request(t, True, by_rules=i != 3)
    for record in stack.records:
        if record.source == ScoreSource.SCORE_SOURCE_RULES:
            by_batch(release, record)
    return stack


def by_batch(release: Release, record: DecisionRecord) -> None:
    assert release.manifest.policy.batch is not None
    risks, t = BatchRisks(release.manifest.policy.batch), record.transaction
    known = [RISKS.get(f"{e}:{getattr(t, f'{e}_id')}") for e in risks.entities]
    score = risks.score([None if risk is None else float(np.float32(risk)) for risk in known])
    if score is None:
        return
    vector = np.array(record.vector or [t.amount] + [np.nan] * (len(PLAN.features) - 1), dtype=np.float32)
    answer = FallbackRules(release.manifest.policy, release.features).score(vector, None, score)
    record.batch_score, record.batch_run, record.source = score, RUN, ScoreSource.SCORE_SOURCE_BATCH_SCORE
    record.score, record.verdict = answer.score, int(answer.verdict(release.manifest.thresholds))  # type: ignore[assignment]


def differences(stack: SimulatedStack, warehouse: Path | None) -> dict[str, list[str]]:
    """By decision what differs, where anything does."""
    served = ServedRelease(stack.release, lambda rows: np.array([0.5] * len(rows), dtype=np.float32))
    replay = Replay(stack, lambda _: served, None, None if warehouse is None else RunRisks.below(str(warehouse)))
    stack.records[:] = [r for r in stack.records if r.source != ScoreSource.SCORE_SOURCE_MODEL]
    return {r.decision_id: [d.field for d in r.differences] for r in replay.run() if not r.equal}


def test_equal_from_the_runs_history(release: Release, tmp_path: Path) -> None:
    write_run(tmp_path, RISKS)
    stack = decided(release)
    by_source = [r.source for r in stack.records]
    assert {by_source.count(s) > 1 for s in (ScoreSource.SCORE_SOURCE_BATCH_SCORE, ScoreSource.SCORE_SOURCE_RULES)}
    assert len({r.verdict for r in stack.records}) == 3
    assert differences(stack, tmp_path) == {}


def test_another_risk_in_the_history_and_another_score_in_the_record(release: Release, tmp_path: Path) -> None:
    write_run(tmp_path, RISKS | {"customer:c0": 0.25})
    stack = decided(release)
    touched = {r.decision_id for r in stack.records if r.transaction.customer_id == "c0" and r.batch_run}
    found = differences(stack, tmp_path)
    assert set(found) == touched
    assert all(fields[:2] == ["batch_score", "score"] for fields in found.values())

    other = tmp_path / "other"
    write_run(other, RISKS)
    stack = decided(release)
    record = next(r for r in stack.records if r.batch_run)
    record.batch_score = float(np.nextafter(np.float32(record.batch_score), np.float32(1)))
    ruled = next(r for r in stack.records if not r.batch_run and r.source == ScoreSource.SCORE_SOURCE_RULES)
    ruled.batch_run = RUN
    assert differences(stack, other) == {record.decision_id: ["batch_score"], ruled.decision_id: ["batch_run"]}


@pytest.mark.parametrize("run", [RUN, "", "churn-20170714t000000-0123abcd", "card-risk-20170714t000000-../../../x"])
def test_a_run_that_is_not_there_is_a_difference_with_its_reason(release: Release, tmp_path: Path, run: str) -> None:
    write_run(tmp_path, RISKS, manifest=False)
    write_run(tmp_path, RISKS, "card-risk-20170714t000000-ffffffff")
    stack = decided(release)
    told = {r.decision_id: r for r in stack.records if r.batch_run}
    for record in told.values():
        record.batch_run = run
    for warehouse in (tmp_path, None):
        assert differences(stack, warehouse) == {key: ["batch_run"] for key in told}


def test_a_run_that_knows_nobody_of_it(release: Release, tmp_path: Path) -> None:
    write_run(tmp_path, {"customer:other": 0.5, "terminal:other": 0.5})
    stack = decided(release)
    told = [r.decision_id for r in stack.records if r.batch_run]
    assert differences(stack, tmp_path) == {key: ["batch_score"] for key in told}
