"""The batch scores of recorded decisions, computed again from the runs' own history, never from the record.

A run that the warehouse does not hold makes its decisions different, with that reason: what a record says of itself
proves nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from model_release import Release
from model_release.policy import BatchRisks
from trine.events.v1.events_pb2 import DecisionRecord, ScoreSource

from batch_scorer.outcome import Difference
from batch_scorer.run_risks import RunRisks
from batch_scorer.runs import job_of


def batch_scores(
    release: Release, records: Sequence[DecisionRecord], runs: RunRisks | None
) -> tuple[dict[int, float], dict[int, Difference]]:
    """By index of decisions that say they are by batch score: the batch score, and what is different about it.

    An index without a score cannot be scored at all; its difference says why. Raises StorageError.
    """
    chosen = [i for i, record in enumerate(records) if record.source == ScoreSource.SCORE_SOURCE_BATCH_SCORE]
    scores: dict[int, float] = {}
    apart: dict[int, Difference] = {}
    policy = release.manifest.policy.batch
    if policy is None:
        reason = f"release {release.id} does not combine batch scores"
        return {}, {i: Difference("source", "batch_score", reason=reason) for i in chosen}
    risks = BatchRisks(policy)
    fields = {entity.name: entity.key for entity in release.plan.entities}
    by_run: dict[str, list[int]] = {}
    for i in chosen:
        by_run.setdefault(records[i].batch_run, []).append(i)
    for run, of_run in by_run.items():
        keys = {i: [f"{e}:{getattr(records[i].transaction, fields[e])}" for e in risks.entities] for i in of_run}
        known = _known(run, policy.job, policy.output, [key for some in keys.values() for key in some], runs)
        for i in of_run:
            if known is None:
                apart[i] = Difference("batch_run", run or "(none)", reason="this run is not in the warehouse")
                continue
            score = risks.score([known.get(key) for key in keys[i]])
            recorded = records[i].batch_score if records[i].HasField("batch_score") else None
            if score is None:
                apart[i] = Difference("batch_score", recorded, reason=f"run {run} knows none of {', '.join(keys[i])}")
                continue
            scores[i] = score
            if recorded is None or np.float32(recorded) != np.float32(score):
                apart[i] = Difference("batch_score", recorded, score)
    return scores, apart


def _known(run: str, job: str, output: str, keys: Sequence[str], runs: RunRisks | None) -> Mapping[str, float] | None:
    if runs is None or run.count("-") < 2 or job_of(run) != job or "/" in run:
        return None
    return runs.of(run, output, keys)
