"""The model card of a release: for a person who has to decide whether to use it."""

from __future__ import annotations

from typing import Any

from model_release import Policy, Thresholds

from models.fraud.fallback import FIGURES
from models.fraud.features import PLAN, QUOTIENTS
from models.fraud.rules import CONFIDENCE


def model_card(
    training: dict[str, Any], metrics: dict[str, Any], thresholds: Thresholds, basis: str, policy: Policy
) -> str:
    """Markdown; the same inputs give the same text (the release's name comes from the content, this text included)."""
    lines = [
        "# Fraud model",
        "",
        "Scores a card transaction with its probability of being fraudulent, for approve, review or deny.",
        "",
        "## What it is",
        "",
        f"An ensemble of {training['recipe']['shape']['members']} small perceptrons over piecewise-linear encodings of "
        f"{len(PLAN.features)} features and {len(QUOTIENTS)} quotients of them, their logits averaged and calibrated.",
        "It learnt the opinions that boosted trees, fitted on the same training days, have of them.",
        "It computes in whole numbers only, so a score does not depend on batch size, threads or machine.",
        "",
        "## Data",
        "",
        "| | |",
        "|---|---|",
        f"| trained on | {_range(training['train'])}: {training['transactions']:,} transactions, "
        f"{training['frauds']:,} frauds |",
        f"| labels | as reported until {training['labels_known_at']} |",
        f"| calibrated, thresholds chosen on | {_range(training['validation'])}, by a network trained on "
        f"{_range(training['validation_train'])} |",
        "",
        "## Quality",
        "",
        "Customers already known to be compromised are left out, as the published protocol does.",
        "",
        "| | validation | test |",
        "|---|---|---|",
    ]
    test = metrics["test"] or {}
    lines += [
        f"| {name.replace('_', ' ')} | {value} | {test.get(name, '')} |"
        for name, value in metrics["validation"].items()
    ]
    lines += [
        "",
        "## Decisions",
        "",
        f"Review from a score of {thresholds.review:.6f}, deny from {thresholds.deny:.6f}.",
        f"How they were chosen: {basis}.",
        "",
        "Without the model these rules answer, each with the precision that it had on the validation days "
        f"(none fires: {policy.base_score:.6f}). An event that can be recorded nowhere: {policy.unrecorded}.",
        f"A rule may deny where its precision is at least {policy.deny_precision:.0%} with {CONFIDENCE:.0%} "
        "confidence, else it sends to review at most.",
        "",
        "| rule | fires where | score | precision, at least | may deny |",
        "|---|---|---|---|---|",
        *(
            f"| {rule.name} | {rule.feature} >= {rule.at_least:g} | {rule.score:.6f} | {rule.precision_bound:.3f} "
            f"| {'yes' if rule.precision_bound >= policy.deny_precision else 'no'} |"
            for rule in policy.rules
        ),
        "",
        *_fallback(metrics["fallback"], policy),
        "## Limits",
        "",
        "Trained on a single week; fraud changes, so retrain often and measure with `trine evaluate fraud`. "
        "Amounts are minor units of one currency. Terminal features lag by the label delay: a terminal "
        "compromised this week looks clean.",
        "",
    ]
    return "\n".join(lines)


def _fallback(found: dict[str, Any], policy: Policy) -> list[str]:
    """How batch scores take part, and what that is worth."""
    if policy.batch is None:
        return ["Past scores of customers and terminals told nothing here: batch scores take no part.", ""]
    batch = policy.batch
    weights = ", ".join(f"{prior.entity} {n}/16" for prior, n in zip(batch.priors, batch.prior_sixteenths, strict=True))
    lines = [
        f"Where the batch job {batch.job} is published, its risks answer together with the rules: logits of the risks "
        f"({weights}) make the batch score, which counts {batch.batch_sixteenths}/16 beside the rules' "
        f"{batch.rules_sixteenths}/16, fitted on the validation days. Review from {batch.thresholds.review:.6f}, deny "
        f"from {batch.thresholds.deny:.6f} ({batch.threshold_basis}).",
        "",
        *(
            f"- {prior.entity}: mean {prior.mean:g}, strength {prior.strength:g} transactions, calibration odds "
            f"{prior.factor:g} * odds^({prior.sixteenths}/16), review from {prior.thresholds.review:.6f} "
            f"({prior.threshold_basis})"
            for prior in batch.priors
        ),
        "",
        "| all transactions | answered by | " + " | ".join(name.replace("_", " ") for name in FIGURES) + " |",
        "|---|---|" + "---|" * len(FIGURES),
    ]
    for days, answers in found.items():
        lines += [
            f"| {days} | {by.replace('_', ' ')} | " + " | ".join(str(figures[name]) for name in FIGURES) + " |"
            for by, figures in (answers or {}).items()
        ]
    return [*lines, ""]


def _range(days: list[str]) -> str:
    return f"{days[0]} to {days[1]}"
