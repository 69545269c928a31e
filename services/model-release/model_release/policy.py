"""From score to verdict, and what is answered without the model. Pure functions; replay uses the same ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from model_release.manifest import BatchPolicy, Policy, Prior, Thresholds
from model_release.odds import chance, chances, power, powers


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
    `thresholds`: its own, where the policy has some for rules and batch score together.
    """

    score: float
    rules: tuple[str, ...]
    batch: bool
    deny_score: float
    thresholds: Thresholds | None = None

    def verdict(self, thresholds: Thresholds) -> Verdict:
        """As the score's, but a denial only where something that may deny says so; else a person looks at it.

        `thresholds`: the release's; its own go before.
        """
        thresholds = self.thresholds or thresholds
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
        self._batch = policy.batch

    def score(
        self,
        vector: NDArray[np.float32],
        usable: NDArray[np.bool_] | None = None,
        batch_score: float | None = None,
    ) -> Fallback:
        """The greatest of the fired rules' scores and the base score; with a batch score, both as the policy's
        `batch` combines them. Where the policy has none: the greatest of all, the base score left out.

        Args:
            vector: float32 [F]; NaN where a feature could not be read.
            usable: bool [F], False where a feature must not be used; None: all that are not NaN.
            batch_score: calibrated on its own, 0..1; None where there is none for this request's entities.
        """
        best, deny_score = self._base, 0.0
        if batch_score is not None and self._batch is None:
            best = deny_score = batch_score
        fired = []
        for name, index, at_least, score, denies in self._rules:
            # A comparison with NaN is false, so a feature that could not be read fires nothing.
            if (usable is None or usable[index]) and vector[index] >= at_least:
                fired.append(name)
                best, deny_score = max(best, score), max(deny_score, denies)
        if batch_score is None or self._batch is None:
            best, deny_score = float(np.float32(best)), float(np.float32(deny_score))
            return Fallback(best, tuple(fired), batch_score is not None, deny_score)
        odds = power(best, self._batch.rules_sixteenths) * power(batch_score, self._batch.batch_sixteenths)
        combined = chance(self._batch.combined_factor * odds)
        return Fallback(combined, tuple(fired), True, combined, self._batch.thresholds)

    def columns(
        self,
        rows: NDArray[np.float32],
        thresholds: Thresholds,
        batch_scores: NDArray[np.float32] | None = None,
    ) -> tuple[NDArray[np.float32], NDArray[np.int8]]:
        """`score` of rows float32 [n, F], NaN where a feature could not be read: scores float32 [n] and numbers of
        verdicts int8 [n]. `batch_scores` float32 [n], NaN where there is none; they need a policy with `batch`.
        """
        best, denying = np.full(len(rows), self._base), np.zeros(len(rows))
        for _, index, at_least, score, denies in self._rules:
            fires = rows[:, index] >= at_least
            best, denying = (
                np.where(fires, np.maximum(best, score), best),
                np.where(fires, np.maximum(denying, denies), denying),
            )
        scores = best.astype(np.float32)
        found = verdicts(scores, thresholds)
        found[(found == Verdict.DENY) & (denying.astype(np.float32) < thresholds.deny)] = Verdict.REVIEW
        if batch_scores is not None:
            if self._batch is None:
                raise ValueError("batch_scores: the release's policy does not say how they combine with rules")
            there = ~np.isnan(batch_scores)
            odds = powers(best[there], self._batch.rules_sixteenths) * powers(
                batch_scores[there].astype(np.float64), self._batch.batch_sixteenths
            )
            scores[there] = chances(self._batch.combined_factor * odds)
            found[there] = verdicts(scores[there], self._batch.thresholds)
        return scores, found


class BatchRisks:
    """From the risks that a batch job published for a request's entities to its batch score."""

    def __init__(self, policy: BatchPolicy) -> None:
        self.entities = tuple(prior.entity for prior in policy.priors)
        self.source = (policy.job, policy.output)
        self._factor, self._sixteenths = policy.factor, policy.prior_sixteenths
        self._unknown = [risk_of(prior, prior.mean) for prior in policy.priors]

    def score(self, risks: Sequence[float | None]) -> float | None:
        """The batch score, a float32; `risks` in the order of `entities`, None for one that the run does not have:
        its risk is that of an entity without a past. None where the run has none of them.
        """
        if all(risk is None for risk in risks):
            return None
        odds = self._factor
        for risk, unknown, sixteenths in zip(risks, self._unknown, self._sixteenths, strict=True):
            odds *= power(unknown if risk is None else risk, sixteenths)
        return chance(odds)

    def columns(self, risks: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """`score` of columns float32 [n], one an entity, NaN for None; float32 [n], to the bit."""
        odds = np.full(len(risks[0]), self._factor)
        for risk, sixteenths in zip(self.filled(risks), self._sixteenths, strict=True):
            odds *= powers(risk, sixteenths)
        return np.where(np.isnan(np.stack(risks)).all(axis=0), np.float32(np.nan), chances(odds))

    def filled(self, risks: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float64]]:
        """The columns with the risk of an entity without a past in place of NaN."""
        return [
            np.where(np.isnan(risk), unknown, risk).astype(np.float64)
            for risk, unknown in zip(risks, self._unknown, strict=True)
        ]


def risk_of(prior: Prior, mean: float) -> float:
    """The calibrated risk, a float32, that goes with a shrunken mean of scores, above 0 and below 1."""
    return chance(prior.factor * power(mean, prior.sixteenths))


def fallback_score(
    vector: NDArray[np.float32],
    usable: NDArray[np.bool_] | None,
    policy: Policy,
    features: tuple[str, ...],
    batch_score: float | None = None,
) -> Fallback:
    """`FallbackRules.score` for a single vector."""
    return FallbackRules(policy, features).score(vector, usable, batch_score)
