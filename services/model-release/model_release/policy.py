"""From score to verdict, and what is answered without the model. Pure functions; replay uses the same ones."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from model_release.manifest import Policy, Thresholds


class Verdict(IntEnum):
    """Numbers are those of the protobuf enums."""

    APPROVE = 1
    REVIEW = 2
    DENY = 3


def verdict(score: float, thresholds: Thresholds) -> Verdict:
    """approve < review <= score < deny. `score` in 0..1; raises ValueError for anything else (also NaN)."""
    if not 0.0 <= score <= 1.0:
        raise ValueError(f"score: must be a probability, 0..1, found {score}")
    if score < thresholds.review:
        return Verdict.APPROVE
    return Verdict.REVIEW if score < thresholds.deny else Verdict.DENY


def verdicts(scores: NDArray[np.float32], thresholds: Thresholds) -> NDArray[np.int8]:
    """`verdict` for a column of scores: int8 [n] of Verdict numbers."""
    if not ((scores >= 0.0) & (scores <= 1.0)).all():
        raise ValueError("scores: must be probabilities, 0..1")
    wide = scores.astype(np.float64)
    return (1 + (wide >= thresholds.review) + (wide >= thresholds.deny)).astype(np.int8)


@dataclass(frozen=True, slots=True)
class Fallback:
    """An answer without the model: a float32 score, the rules that fired, whether a batch score took part.

    `deny_score`: the greatest score of what may deny: the batch score, and rules that are precise enough; 0 for none.
    """

    score: float
    rules: tuple[str, ...]
    batch: bool
    deny_score: float

    def verdict(self, thresholds: Thresholds) -> Verdict:
        """As the score's, but a denial only where something that may deny says so; else a person looks at it."""
        found = verdict(self.score, thresholds)
        return Verdict.REVIEW if found is Verdict.DENY and self.deny_score < thresholds.deny else found


class FallbackRules:
    """A release's policy bound to its vector order, so that a request costs a few comparisons."""

    def __init__(self, policy: Policy, features: tuple[str, ...]) -> None:
        self._base = policy.base_score
        self._rules = [
            (rule.name, features.index(rule.feature), rule.at_least, rule.score,
             rule.score if rule.precision_bound >= policy.deny_precision else 0.0)
            for rule in policy.rules
        ]  # fmt: skip

    def score(
        self,
        vector: NDArray[np.float32],
        usable: NDArray[np.bool_] | None = None,
        batch_score: float | None = None,
    ) -> Fallback:
        """The greatest of: the fired rules' scores, and the batch score (the base score where there is none).

        Args:
            vector: float32 [F]; NaN where a feature could not be read.
            usable: bool [F], False where a feature must not be used; None: all that are not NaN.
            batch_score: calibrated on its own, 0..1; None where there is none for this entity.
        """
        best = self._base if batch_score is None else batch_score
        deny_score = 0.0 if batch_score is None else batch_score
        fired = []
        for name, index, at_least, score, denies in self._rules:
            # A comparison with NaN is false, so a feature that could not be read fires nothing.
            if (usable is None or usable[index]) and vector[index] >= at_least:
                fired.append(name)
                best, deny_score = max(best, score), max(deny_score, denies)
        return Fallback(float(np.float32(best)), tuple(fired), batch_score is not None, float(np.float32(deny_score)))


def fallback_score(
    vector: NDArray[np.float32],
    usable: NDArray[np.bool_] | None,
    policy: Policy,
    features: tuple[str, ...],
    batch_score: float | None = None,
) -> Fallback:
    """`FallbackRules.score` for a single vector."""
    return FallbackRules(policy, features).score(vector, usable, batch_score)
