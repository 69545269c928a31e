"""Answers without the model: how batch scores and rules combine, and by how much that is better than rules alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from model_release import Policy, Thresholds
from model_release.manifest import BatchPolicy
from model_release.policy import BatchRisks, FallbackRules, Verdict
from numpy.typing import NDArray

from models.fraud.card_risk import ENTITIES, JOB_NAME, WINDOW_DAYS, Pasts, fit_prior, pasts_of, risks_by_entity
from models.fraud.history import LabelledHistory
from models.fraud.thresholds import choose_thresholds
from models.tabular.log_odds import fit_log_odds, fit_weights, logit, on_grid
from models.tabular.ranking import auc_roc, average_precision

RULES, WITH_BATCH = "rules", "with_batch_score"
BLIND = "_no_features"
"""As in an outage of the feature store: of the vector only what the request itself says."""
ANSWERS = tuple(who + how for how in ("", BLIND) for who in (RULES, WITH_BATCH))
FIGURES = ("average_precision", "auc_roc", "precision", "recall", "flagged", "deny_precision", "denied")


@dataclass(frozen=True, slots=True, eq=False)
class ScoredDays:
    """Transactions `rows` (indices of the history) of some days, and what their entities' scores before them say.

    `scores` float32 [n]: of every transaction of the history, by one network.
    """

    history: LabelledHistory
    rows: NDArray[np.int64]
    scores: NDArray[np.float32]
    pasts: dict[str, Pasts]

    @classmethod
    def of(cls, history: LabelledHistory, rows: NDArray[np.int64], scores: NDArray[np.float32]) -> ScoredDays:
        return cls(history, rows, scores, {name: pasts_of(history, name, scores, rows) for name in ENTITIES})

    def batch_scores(self, policy: BatchPolicy) -> NDArray[np.float32]:
        """float32 [m]; NaN where a run would know neither customer nor terminal."""
        return BatchRisks(policy).columns(risks_by_entity(self.pasts, policy.priors))


def fit_batch_policy(
    policy: Policy,
    thresholds: Thresholds,
    days: ScoredDays,
    fraud: NDArray[np.bool_],
    review_budget: int,
    deny_precision: float,
) -> Policy:
    """The policy with its `batch`: priors, weights and thresholds fitted on validation days, labels bool [n].

    The prior's strength is of the scores before the first of these days. As it was where past scores say nothing.
    """
    history, rows = days.history, days.rows
    day, happened = history.day[rows], fraud[rows]
    first = int(day.min())
    before = np.flatnonzero((history.day < first) & (history.day >= first - WINDOW_DAYS))
    priors = [
        fit_prior(
            name, (history.keys[name][before], days.scores[before]), days.pasts[name], day, happened,
            review_budget, deny_precision,
        )
        for name in ENTITIES
    ]  # fmt: skip
    found = tuple(prior for prior in priors if prior is not None)
    if not found:
        return policy
    risks = risks_by_entity(days.pasts, found)
    seen = ~np.isnan(np.stack(risks)).all(axis=0)
    unfit = BatchPolicy(
        job=JOB_NAME, priors=found, factor=1.0, prior_sixteenths=(16,) * len(found), combined_factor=1.0,
        rules_sixteenths=16, batch_sixteenths=16, thresholds=thresholds, threshold_basis="",
    )  # fmt: skip
    vectors = history.vectors[rows]
    by_rules, verdicts = FallbackRules(policy, history.features).columns(vectors, thresholds)
    # Beside the rules first: a risk that only repeats what the rules know, or what is over by now, gets no weight.
    logits = np.column_stack([logit(risk[seen]) for risk in BatchRisks(unfit).filled(risks)])
    beside = fit_weights(np.column_stack([logit(by_rules[seen]), logits]), happened[seen])[1:]
    if not beside.any():
        return policy
    (scale,) = fit_weights((logits @ beside)[:, None], happened[seen])
    weights, factor = on_grid(beside * scale, logits, happened[seen])
    if not any(weights):
        return policy
    batch = unfit.model_copy(update={"prior_sixteenths": weights, "factor": factor})
    scores = days.batch_scores(batch)
    evidence = np.column_stack([logit(by_rules[seen]), logit(scores[seen])])
    (rules, own), combined = fit_log_odds(evidence, happened[seen])
    if not own:
        return policy
    batch = batch.model_copy(update={"rules_sixteenths": rules, "batch_sixteenths": own, "combined_factor": combined})
    together = policy.model_copy(update={"batch": batch})
    answered, _ = FallbackRules(together, history.features).columns(vectors, thresholds, scores)
    # People look at as much as the rules alone would send them, or at what their budget is.
    card = history.card[rows]
    sent = len(np.unique(np.column_stack([day, card])[verdicts != Verdict.APPROVE], axis=0))
    budget = max(review_budget, round(sent / len(np.unique(day))))
    chosen, basis = choose_thresholds(day, card, happened, answered, budget, deny_precision)
    batch = batch.model_copy(update={"thresholds": chosen, "threshold_basis": basis})
    # Once more through its validation.
    return Policy.model_validate(policy.model_dump() | {"batch": batch.model_dump()})


def measure_fallback(
    policy: Policy, thresholds: Thresholds, days: ScoredDays, fraud: NDArray[np.bool_]
) -> dict[str, dict[str, float | int | None]]:
    """Rules alone beside rules and batch score, over all transactions of the days, labels bool [n]; six digits.

    The days must have frauds and others. `flagged` are those that would be reviewed or denied, by each one's own
    thresholds; recall is the share of frauds among them.
    """
    rules = FallbackRules(policy, days.history.features)
    vectors, truth = days.history.vectors[days.rows], fraud[days.rows]
    blind = vectors.copy()
    blind[:, days.history.own :] = np.nan
    scores = None if policy.batch is None else days.batch_scores(policy.batch)
    answers = {}
    for suffix, seen in (("", vectors), (BLIND, blind)):
        answers[RULES + suffix] = rules.columns(seen, thresholds)
        if scores is not None:
            answers[WITH_BATCH + suffix] = rules.columns(seen, thresholds, scores)
    return {name: _figures(truth, *answer) for name, answer in answers.items()}


def _figures(
    truth: NDArray[np.bool_], scores: NDArray[np.float32], found: NDArray[np.int8]
) -> dict[str, float | int | None]:
    flagged, denied = found != Verdict.APPROVE, found == Verdict.DENY
    return {
        "average_precision": round(average_precision(truth, scores), 6),
        "auc_roc": round(auc_roc(truth, scores), 6),
        "precision": _share(truth[flagged]),
        "recall": round(float(flagged[truth].mean()), 6),
        "flagged": int(flagged.sum()),
        "deny_precision": _share(truth[denied]),
        "denied": int(denied.sum()),
    }


def _share(truth: NDArray[np.bool_]) -> float | None:
    return round(float(truth.mean()), 6) if len(truth) else None
