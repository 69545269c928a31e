"""The rules that answer when the model cannot: one feature each, with the precision it had on the training days."""

from __future__ import annotations

from typing import Literal

import numpy as np
from model_release.manifest import Policy, Rule
from numpy.typing import NDArray

RULE_FEATURES = (
    "amount",
    "terminal_fraud_share_1d",
    "terminal_fraud_share_7d",
    "terminal_fraud_share_30d",
    "customer_mean_amount_1d",
)
MIN_FRAUDS = 10
MIN_LIFT = 5.0
"""How many times the overall share of frauds a rule's must be: below that it says next to nothing."""
BETA_SQUARED = 0.25
"""F-beta with beta 0.5: a rule that cries wolf is worse than one that misses something."""


def measure_rules(
    features: tuple[str, ...],
    rows: NDArray[np.float32],
    fraud: NDArray[np.bool_],
    unrecorded: Literal["answer", "refuse"] = "refuse",
) -> Policy:
    """For every feature of RULE_FEATURES the value from which on F0.5 is greatest, if that catches MIN_FRAUDS
    and has a lift of MIN_LIFT.

    A rule's score is the share of frauds where it fires, drawn towards zero by one count; the base score is the share
    where none fires. rows float32 [n, F]; fraud bool [n].
    """
    rules = []
    fired = np.zeros(len(rows), dtype=np.bool_)
    for feature in RULE_FEATURES:
        values = rows[:, features.index(feature)]
        at_least = _best_cut(values, fraud)
        fires = values >= at_least
        hits, alerts = int(fraud[fires].sum()), int(fires.sum())
        score = float(np.float32(hits / (alerts + 1)))
        if hits < MIN_FRAUDS or score < MIN_LIFT * fraud.mean():
            continue
        fired |= fires
        rules.append(Rule(name=f"{feature}_high", feature=feature, at_least=at_least, score=score))
    quiet = ~fired
    base = float(np.float32((int(fraud[quiet].sum()) + 1) / (int(quiet.sum()) + 2)))
    return Policy(unrecorded=unrecorded, base_score=base, rules=tuple(rules))


def _best_cut(values: NDArray[np.float32], fraud: NDArray[np.bool_]) -> float:
    order = np.argsort(-values, kind="stable")
    hits = np.cumsum(fraud[order])
    ranks = np.arange(1, len(order) + 1)
    f_beta = (1 + BETA_SQUARED) * hits / (ranks + BETA_SQUARED * max(int(hits[-1]), 1))
    # A cut must not divide equal values.
    f_beta[:-1][np.diff(values[order]) == 0] = 0.0
    return float(values[order][int(np.argmax(f_beta))])
