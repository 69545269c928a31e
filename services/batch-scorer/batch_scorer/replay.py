"""Recorded decisions computed again: vector, score and verdict from archived events, compared bit for bit.

Scores come from the release's own module and policy, the ones that served. What cannot be found makes a decision
`different`, with the reason; nothing is skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
import xxhash
from google.protobuf.message import Message
from model_release import Release
from model_release.policy import Fallback, FallbackRules, verdicts
from numpy.typing import NDArray
from trine.events.v1.events_pb2 import DecisionRecord, ScoreSource, Verdict

from batch_scorer.archive import Archive
from batch_scorer.batch_replay import batch_scores
from batch_scorer.outcome import Difference, Replayed, Report
from batch_scorer.run_risks import RunRisks
from batch_scorer.vectors import Base, VectorReplay, Vectors

_CHUNK = 50_000

Scorer = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class ServedRelease:
    """A release and its module: float32 [n, features] -> float32 [n]."""

    release: Release
    score: Scorer


class Replay:
    """Replays the decisions of an archive. `open_release` gives a release by its id, or None where there is none.

    `base`: the history that rebuilt states were made of. `runs`: of batch jobs, for decisions they took part in.
    """

    def __init__(
        self,
        archive: Archive,
        open_release: Callable[[str], ServedRelease | None],
        base: Base | None = None,
        runs: RunRisks | None = None,
    ) -> None:
        self._runs = runs
        self._archive = archive
        self._open_release = open_release
        self._base = base
        self._releases: dict[str, ServedRelease | None] = {}
        self._plans: dict[str, VectorReplay] = {}
        self._seen: dict[str, list[int]] = {}
        self.report = Report()

    def run(self, from_us: int | None = None, to_us: int | None = None) -> Iterator[Replayed]:
        """Every decision on events with from_us <= event time < to_us, as often as it was decided.

        `report` counts what was yielded so far.
        """
        wanted = (
            record
            for record in self._archive.decisions()
            if (from_us is None or record.transaction.event_time_us >= from_us)
            and (to_us is None or record.transaction.event_time_us < to_us)
            and self._first_time(record)
        )
        while chunk := list(islice(wanted, _CHUNK)):
            by_release: dict[str, list[DecisionRecord]] = {}
            for record in chunk:
                by_release.setdefault(record.release, []).append(record)
            for release_id, records in by_release.items():
                for record, replayed in zip(records, self._replay(release_id, records), strict=True):
                    self._count(record, replayed)
                    yield replayed

    def _first_time(self, record: DecisionRecord) -> bool:
        """False for a record that was there before, equal to the byte: the spool may send one twice."""
        digest = xxhash.xxh3_64_intdigest(record.SerializeToString(deterministic=True))
        known = self._seen.setdefault(record.decision_id, [])
        if digest in known:
            self.report.repeated += 1
            return False
        known.append(digest)
        return True

    def _count(self, record: DecisionRecord, replayed: Replayed) -> None:
        report = self.report
        report.add(replayed)
        report.sources[_source(record.source)] += 1
        report.verdicts[_verdict(record.verdict)] += 1
        report.releases[record.release] += 1
        report.lag_ms.append(record.feature_lag_ms)

    def _replay(self, release_id: str, records: Sequence[DecisionRecord]) -> Iterable[Replayed]:
        if release_id not in self._releases:
            self._releases[release_id] = self._open_release(release_id)
        served = self._releases[release_id]
        if served is None:
            missing = Difference("release", release_id, reason="there is no such release here")
            return [Replayed(r.decision_id, (missing,)) for r in records]
        plan = served.release.plan
        if plan.fingerprint not in self._plans:
            self._plans[plan.fingerprint] = VectorReplay(plan, self._archive, self._base)
        replay = self._plans[plan.fingerprint]
        found: list[Replayed | None] = [None] * len(records)
        present, rows = [], []
        for i, record in enumerate(records):
            differences, row = _event_differences(replay, record)
            if row is None:
                found[i] = Replayed(record.decision_id, tuple(differences))
            else:
                present.append(i)
                rows.append(row)
        chosen = [records[i] for i in present]
        if chosen:
            vectors = replay.vectors(chosen, rows)
            for i, replayed in zip(present, _compared(served, chosen, vectors, self._runs), strict=True):
                found[i] = replayed
        return [r for r in found if r is not None]


def _event_differences(replay: VectorReplay, record: DecisionRecord) -> tuple[list[Difference], int | None]:
    """The archived event that the record is about; without one, what differs."""
    decided = record.transaction
    if record.decision_id != decided.transaction_id:
        return [Difference("decision_id", record.decision_id, decided.transaction_id)], None
    rows = replay.event_rows(decided.transaction_id)
    if not rows:
        return [Difference("transaction", decided.transaction_id, reason="this event is not in the archive")], None
    first: list[Difference] = []
    for row in rows:
        differing = _fields_apart(decided, replay.events.message_at(row))
        if not differing:
            return [], row
        first = first or differing
    return first, None


def _fields_apart(recorded: Message, archived: Message) -> list[Difference]:
    if recorded == archived:
        return []
    names = [f.name for f in recorded.DESCRIPTOR.fields]
    pairs = [(name, getattr(recorded, name), getattr(archived, name)) for name in names]
    return [Difference(f"transaction.{name}", a, b) for name, a, b in pairs if a != b]


def _compared(
    served: ServedRelease, records: Sequence[DecisionRecord], vectors: Vectors, runs: RunRisks | None
) -> Iterator[Replayed]:
    manifest = served.release.manifest
    batch, batch_apart = batch_scores(served.release, records, runs)
    scores, fallbacks, unscored = _scores(served, records, vectors, batch)
    right = verdicts(np.nan_to_num(scores), manifest.thresholds)
    for i, answer in fallbacks.items():
        right[i] = answer.verdict(manifest.thresholds)
    recorded_scores = np.fromiter((r.score for r in records), np.float32, len(records))
    same_score = recorded_scores.view(np.uint32) == scores.view(np.uint32)
    recorded, lengths = _recorded_vectors(records, vectors.rows.shape[1])
    same_entry = recorded.view(np.uint32) == vectors.rows.view(np.uint32)
    whole = same_entry.all(axis=1) & (lengths == vectors.rows.shape[1])
    for i, record in enumerate(records):
        apart = list(vectors.unfound.get(i, ()))
        if not whole[i] and (record.inputs or lengths[i]):
            apart += _vector_differences(served, record, vectors.rows[i], same_entry[i], int(lengths[i]))
        if (batch_difference := batch_apart.get(i)) is not None:
            apart.append(batch_difference)
        elif record.source != ScoreSource.SCORE_SOURCE_BATCH_SCORE and (
            record.batch_run or record.HasField("batch_score")
        ):
            apart.append(Difference("batch_run", record.batch_run, reason="does not go with the source"))
        if (reason := unscored.get(i)) is not None:
            apart.append(reason)
        elif i in fallbacks or record.source == ScoreSource.SCORE_SOURCE_MODEL:
            if not same_score[i]:
                apart.append(Difference("score", record.score, float(scores[i])))
            if record.verdict != right[i]:
                apart.append(Difference("verdict", _verdict(record.verdict), _verdict(int(right[i]))))
            fired = fallbacks[i].rules if i in fallbacks else ()
            if tuple(record.rules) != fired:
                apart.append(Difference("rules", ", ".join(record.rules) or "none", ", ".join(fired) or "none"))
        if (record.source == ScoreSource.SCORE_SOURCE_MODEL) != (record.fallback_reason == ""):
            apart.append(Difference("fallback_reason", record.fallback_reason, reason="does not go with the source"))
        yield Replayed(record.decision_id, tuple(apart))


def _scores(
    served: ServedRelease, records: Sequence[DecisionRecord], vectors: Vectors, batch: Mapping[int, float]
) -> tuple[NDArray[np.float32], dict[int, Fallback], dict[int, Difference]]:
    """Scores float32[n], by decision what answered without the model, or why it cannot be scored (a score of NaN)."""
    scores = np.full(len(records), np.nan, dtype=np.float32)
    fallbacks: dict[int, Fallback] = {}
    unscored: dict[int, Difference] = {}
    manifest = served.release.manifest
    rules = FallbackRules(manifest.policy, manifest.features)
    by_model = []
    for i, record in enumerate(records):
        if record.source == ScoreSource.SCORE_SOURCE_MODEL:
            if vectors.usable[i].all():
                by_model.append(i)
            else:
                reason = "the model cannot have scored it: features could not be read"
                unscored[i] = Difference("source", "model", "rules", reason)
        elif record.source == ScoreSource.SCORE_SOURCE_RULES:
            fallbacks[i] = rules.score(vectors.rows[i], vectors.usable[i])
            scores[i] = fallbacks[i].score
        elif record.source == ScoreSource.SCORE_SOURCE_BATCH_SCORE:
            if i in batch:
                fallbacks[i] = rules.score(vectors.rows[i], vectors.usable[i], batch[i])
                scores[i] = fallbacks[i].score
        else:
            unscored[i] = Difference("source", _source(record.source), reason="is none of model, batch_score, rules")
    if by_model:
        scores[by_model] = served.score(np.ascontiguousarray(vectors.rows[by_model]))
    return scores, fallbacks, unscored


def _recorded_vectors(records: Sequence[DecisionRecord], width: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Recorded vectors float32[n, width], zeros where one has another length, and their lengths int64[n]."""
    lengths = np.fromiter((len(r.vector) for r in records), np.int64, len(records))
    right = np.flatnonzero(lengths == width)
    out = np.zeros((len(records), width), dtype=np.float32)
    flat = chain.from_iterable(records[i].vector for i in right.tolist())
    out[right] = np.fromiter(flat, np.float32, len(right) * width).reshape(-1, width)
    return out, lengths


def _vector_differences(
    served: ServedRelease, record: DecisionRecord, row: NDArray[np.float32], same: NDArray[np.bool_], length: int
) -> list[Difference]:
    if length != len(row):
        return [Difference("vector", f"{length} features", f"{len(row)} features")]
    names = served.release.manifest.features
    return [
        Difference(f"vector.{names[c]}", float(record.vector[c]), float(row[c])) for c in np.flatnonzero(~same).tolist()
    ]


def _verdict(number: int) -> str:
    """A verdict as people read it; a number that the contract does not know as itself."""
    known = Verdict.DESCRIPTOR.values_by_number.get(number)
    return str(number) if known is None else known.name.removeprefix("VERDICT_").lower()


def _source(number: int) -> str:
    known = ScoreSource.DESCRIPTOR.values_by_number.get(number)
    return str(number) if known is None else known.name.removeprefix("SCORE_SOURCE_").lower()
