"""The model card of a churn release."""

from __future__ import annotations

from typing import Any

from model_release import Thresholds

from models.churn.features import HORIZON_DAYS, PLAN, POPULATION_DAYS


def model_card(
    training: dict[str, Any],
    validation: dict[str, dict[str, Any]],
    test: dict[str, dict[str, Any]] | None,
    thresholds: Thresholds,
    basis: str,
) -> str:
    """Markdown; the same inputs give the same text."""
    lines = [
        "# Churn model",
        "",
        f"The probability that a customer seen in the last {POPULATION_DAYS} days makes no transaction in the next "
        f"{HORIZON_DAYS}.",
        "",
        f"An ensemble of {training['recipe']['shape']['members']} small perceptrons over piecewise-linear encodings of "
        f"{len(PLAN.features)} counts and sums in windows that lie inside one another. It computes in whole numbers "
        "only, so a score does not depend on batch size, threads or machine.",
        "",
        f"Trained at {training['cutoff']} on {training['rows']:,} customers at {len(training['cutoffs'])} cut-offs "
        f"({training['cutoffs'][0]} to {training['cutoffs'][-1]}), {training['gone']:,} of whom left; calibrated on "
        f"{training['validation']} by a network trained {HORIZON_DAYS} days earlier.",
        "",
        "| measured at | by | AUC ROC | average precision | Brier score | customers | gone |",
        "|---|---|---|---|---|---|---|",
    ]
    for when, found in ((training["validation"], validation), (training["cutoff"], test or {})):
        lines += [
            f"| {when} | {by} | " + " | ".join(str(value) for value in figures.values()) + " |"
            for by, figures in found.items()
        ]
    lines += [
        "",
        f"Levels: {thresholds.review} and {thresholds.deny} ({basis}).",
        "",
        "It knows when somebody bought and for how much, not why; a customer who pauses looks like one who leaves.",
        "",
    ]
    return "\n".join(lines)
