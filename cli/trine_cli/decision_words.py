"""Verdicts and sources of the scoring API as people write them: `deny`, `batch_score`."""

from __future__ import annotations

from trine.scoring.v1.scoring_pb2 import ScoreSource, ScoreTransactionResponse, Verdict


def verdict_of(response: ScoreTransactionResponse) -> str:
    """`approve`, `review` or `deny`."""
    return Verdict.Name(response.verdict).removeprefix("VERDICT_").lower()


def source_of(response: ScoreTransactionResponse) -> str:
    """`model`, `batch_score` or `rules`."""
    return ScoreSource.Name(response.source).removeprefix("SCORE_SOURCE_").lower()
