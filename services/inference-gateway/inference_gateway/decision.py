"""What the gateway decides on a request, before it becomes a response, a record or a JSON body. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
from feature_store.assemble import request_matrix
from feature_store.online import FeatureRequest, ViewRead
from feature_store.online_assembly import columns_of
from model_release.policy import FallbackRules, verdict, verdicts
from model_release.release import Release
from numpy.typing import NDArray

from inference_gateway.batch_scores import BatchScore

_FEW = 16


class Source(IntEnum):
    """Who gave the score. Numbers are those of the protobuf enums."""

    MODEL = 1
    BATCH_SCORE = 2
    RULES = 3


class Reason:
    """Why the model did not answer."""

    DEADLINE = "deadline"
    MODEL_DOWN = "model_down"
    OVERLOAD = "overload"
    FEATURES_DOWN = "features_down"
    FEATURES_LOST = "features_lost"


class Request:
    """A validated request. `event`: the serialised event for Kafka; `kafka_key`, `partition`: where it goes."""

    __slots__ = ("event", "features", "kafka_key", "partition")

    def __init__(self, features: FeatureRequest, event: bytes, kafka_key: bytes, partition: int) -> None:
        self.features, self.event, self.kafka_key, self.partition = features, event, kafka_key, partition


class Decision:
    """A decided request; times in microseconds. `vector`: float32[F], None where no state could be read.

    `batch`: what a batch run had to do with it; None for nothing.
    """

    __slots__ = (
        "batch", "decided_at_us", "features_us", "inputs", "lag_ms", "model_us", "queue_us", "reason", "record_us",
        "release", "rules", "score", "source", "total_us", "vector", "verdict",
    )  # fmt: skip

    def __init__(
        self,
        release: str,
        verdict: int,
        score: float,
        source: int,
        reason: str = "",
        rules: Sequence[str] = (),
    ) -> None:
        self.release = release
        self.verdict, self.score, self.source, self.reason, self.rules = verdict, score, source, reason, rules
        self.decided_at_us = 0
        self.batch: BatchScore | None = None
        self.vector: NDArray[np.float32] | None = None
        self.inputs: Sequence[ViewRead] = ()
        self.lag_ms = 0
        self.queue_us = self.features_us = self.model_us = self.record_us = self.total_us = 0


class Decider:
    """Scores to decisions by one release's thresholds and policy."""

    def __init__(self, release: Release) -> None:
        self.release = release.id
        self._plan = release.plan
        self.refuses_unrecorded = release.manifest.policy.unrecorded == "refuse"
        self._thresholds = release.manifest.thresholds
        self._rules = FallbackRules(release.manifest.policy, release.features)

    def request_vectors(self, requests: Sequence[FeatureRequest]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """What is known without any state: vectors float32[n, F], and which of their features count, bool[F]."""
        n, own = len(requests), len(self._plan.request_features)
        vectors = np.full((n, len(self._plan.features)), np.nan, dtype=np.float32)
        vectors[:, :own] = request_matrix(self._plan, *columns_of(self._plan, requests))
        usable = np.zeros(len(self._plan.features), dtype=np.bool_)
        usable[:own] = True
        return vectors, usable

    def by_model(self, scores: NDArray[np.float32]) -> list[Decision]:
        """One decision a score. Raises ValueError where a score is not a probability."""
        release, source = self.release, Source.MODEL.value
        if len(scores) < _FEW:
            # NumPy's fixed price is higher than that of a few comparisons.
            return [Decision(release, int(verdict(s, self._thresholds)), s, source) for s in scores.tolist()]
        found = verdicts(scores, self._thresholds).tolist()
        return [Decision(release, v, s, source) for v, s in zip(found, scores.tolist(), strict=True)]

    def without_model(
        self, vector: NDArray[np.float32], usable: NDArray[np.bool_], reason: str, batch: BatchScore | None = None
    ) -> Decision:
        """By the rules whose features are `usable` (bool[F]), and the batch score where there is one."""
        fallback = self._rules.score(vector, usable, None if batch is None else batch.score)
        source = Source.BATCH_SCORE if fallback.batch else Source.RULES
        decided = int(fallback.verdict(self._thresholds))
        decision = Decision(self.release, decided, fallback.score, source.value, reason, fallback.rules)
        decision.batch = batch
        return decision
