"""The rules that answer when the model cannot: one feature each, with the precision it had on later days.

A rule's cut is chosen on some days and its precision measured on others, which the cut never saw.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from model_release.manifest import Policy, Rule
from numpy.typing import NDArray
from scipy.special import betaincinv  # type: ignore[import-untyped]

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
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Transactions of some days: rows float32 [n, F] in the plan's order, fraud bool [n]."""

    rows: NDArray[np.float32]
    fraud: NDArray[np.bool_]


def measure_rules(
    features: tuple[str, ...],
    earlier: Sample,
    later: Sample,
    deny_precision: float = 0.9,
    unrecorded: Literal["answer", "refuse"] = "refuse",
) -> Policy:
    """For every feature of RULE_FEATURES the value from which on F0.5 is greatest on the earlier days, if on the later
    ones that catches MIN_FRAUDS and has a lift of MIN_LIFT.

    A rule's score is the share of frauds where it fires on the later days, drawn towards zero by one count; the base
    score is the share where none fires. A rule may deny where its precision is `deny_precision` at least, with
    CONFIDENCE: so many fired and so many of those were fraud that chance does not explain it.
    """
    rules = []
    fired = np.zeros(len(later.rows), dtype=np.bool_)
    for feature in RULE_FEATURES:
        column = features.index(feature)
        at_least = _best_cut(earlier.rows[:, column], earlier.fraud)
        fires = later.rows[:, column] >= at_least
        hits, alerts = int(later.fraud[fires].sum()), int(fires.sum())
        score = float(np.float32(hits / (alerts + 1)))
        if hits < MIN_FRAUDS or score < MIN_LIFT * later.fraud.mean():
            continue
        fired |= fires
        bound = float(np.float32(precision_bound(hits, alerts)))
        rules.append(
            Rule(name=f"{feature}_high", feature=feature, at_least=at_least, score=score, precision_bound=bound)
        )
    quiet = ~fired
    base = float(np.float32((int(later.fraud[quiet].sum()) + 1) / (int(quiet.sum()) + 2)))
    return Policy(unrecorded=unrecorded, base_score=base, deny_precision=deny_precision, rules=tuple(rules))


def precision_bound(hits: int, alerts: int) -> float:
    """The least share of frauds that, with CONFIDENCE, goes with `hits` of `alerts` (Clopper and Pearson, 1934)."""
    return float(betaincinv(hits, alerts - hits + 1, 1.0 - CONFIDENCE)) if hits else 0.0


def _best_cut(values: NDArray[np.float32], fraud: NDArray[np.bool_]) -> float:
    order = np.argsort(-values, kind="stable")
    hits = np.cumsum(fraud[order])
    ranks = np.arange(1, len(order) + 1)
    f_beta = (1 + BETA_SQUARED) * hits / (ranks + BETA_SQUARED * max(int(hits[-1]), 1))
    # A cut must not divide equal values.
    f_beta[:-1][np.diff(values[order]) == 0] = 0.0
    return float(values[order][int(np.argmax(f_beta))])
