"""What came back for every request of the day, as columns; filled by the sender while the live table reads."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from trine.scoring.v1.scoring_pb2 import ScoreSource, ScoreTransactionResponse, Verdict

WAITING, ANSWERED, LATE, FAILED = 0, 1, 2, 3
"""LATE: nothing came within the caller's deadline. FAILED: an error instead of a decision."""

APPROVE, REVIEW, DENY = Verdict.VERDICT_APPROVE, Verdict.VERDICT_REVIEW, Verdict.VERDICT_DENY
MODEL = ScoreSource.SCORE_SOURCE_MODEL
SOURCES = {
    ScoreSource.SCORE_SOURCE_MODEL: "model",
    ScoreSource.SCORE_SOURCE_BATCH_SCORE: "batch score",
    ScoreSource.SCORE_SOURCE_RULES: "rules",
}
VERDICTS = {APPROVE: "approve", REVIEW: "review", DENY: "deny"}


class Tally:
    """Columns of n requests. `sent_s`: seconds since the first was due; `latency_ms`: as the caller saw it."""

    def __init__(self, n: int) -> None:
        self.state = np.zeros(n, dtype=np.int8)
        self.sent_s = np.full(n, np.nan)
        self.latency_ms = np.full(n, np.nan)
        self.verdict = np.zeros(n, dtype=np.int8)
        self.source = np.zeros(n, dtype=np.int8)
        self.score = np.full(n, np.nan, dtype=np.float32)
        self.lag_ms = np.zeros(n, dtype=np.int64)
        self.reasons: dict[str, int] = {}
        self.errors: dict[str, int] = {}

    def answered(self, i: int, latency_ms: float, response: ScoreTransactionResponse) -> None:
        self.latency_ms[i] = latency_ms
        self.verdict[i], self.source[i] = response.verdict, response.source
        self.score[i], self.lag_ms[i] = response.score, response.feature_lag_ms
        if response.fallback_reason:
            self.reasons[response.fallback_reason] = self.reasons.get(response.fallback_reason, 0) + 1
        self.state[i] = ANSWERED

    def failed(self, i: int, latency_ms: float, what: str, late: bool) -> None:
        self.latency_ms[i] = latency_ms
        self.errors[what] = self.errors.get(what, 0) + 1
        self.state[i] = LATE if late else FAILED

    @property
    def done(self) -> NDArray[np.bool_]:
        return np.asarray(self.state != WAITING)


def quality(verdict: NDArray[np.int8], fraud: NDArray[np.bool_], least: int) -> tuple[float | None, float | None]:
    """Precision and recall of "a verdict of `least` or worse is fraud"; None where nothing can be said."""
    flagged = verdict >= least
    hits = int((flagged & fraud).sum())
    return (hits / int(flagged.sum()) if flagged.any() else None), (hits / int(fraud.sum()) if fraud.any() else None)
