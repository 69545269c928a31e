"""What the generator of card transactions can be told, with the handbook's values as defaults.

Process: Le Borgne, Siblini, Lebichot, Bontempi, "Reproducible Machine Learning for Credit Card Fraud Detection",
chapter 3, "Transaction data simulator". Reports are this project's own: the handbook knows labels only.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import asdict, dataclass

from models.fraud.errors import ParameterError


@dataclass(frozen=True, slots=True)
class GeneratorParameters:
    """Times are days unless the name says otherwise; shares are of 1.

    A fraud is reported within `usual_report_days` (exponentially distributed with mean `report_mean_days`, cut there);
    a share `late_share` of them uniformly between `usual_report_days` and `late_report_days`. `withdrawn_share` of the
    frauds' reports are withdrawn in error. Besides, as many genuine transactions as `false_report_share` times the
    frauds are reported in error, and every one of these reports is withdrawn. A withdrawal comes uniformly within
    `withdrawal_days` of its report.

    Customers leave at a hazard of their own, drawn once from an exponential distribution whose mean is `churn_rate` in
    30 days; in their last `churn_slowdown_days` their transactions become fewer, linearly down to none.
    """

    customers: int = 5_000
    terminals: int = 10_000
    days: int = 183
    start: dt.date = dt.date(2018, 4, 1)
    seed: int = 0
    radius: float = 5.0
    currency: str = "EUR"
    late_share: float = 0.05
    withdrawn_share: float = 0.01
    false_report_share: float = 0.02
    report_mean_days: float = 2.0
    usual_report_days: float = 7.0
    late_report_days: float = 30.0
    withdrawal_days: float = 14.0
    churn_rate: float = 0.0
    churn_slowdown_days: float = 28.0

    def __post_init__(self) -> None:
        for name in ("customers", "terminals", "days"):
            self._require(name, 1 <= getattr(self, name) <= 100_000_000, "1 to 100,000,000")
        self._require("seed", 0 <= self.seed < 2**63, "0 to 2^63 - 1")
        self._require("start", 2000 <= self.start.year < 2100, "2000-01-01 to 2099-12-31")
        self._require("days", self.days <= (dt.date(2100, 1, 1) - self.start).days, "an end before 2100-01-01")
        self._require("radius", 0 < self.radius <= 150, "more than 0, at most 150 (the map is 100 by 100)")
        code = self.currency
        self._require("currency", len(code) == 3 and code.isascii() and code.isalpha() and code.isupper(), "like EUR")
        for name in ("late_share", "withdrawn_share", "false_report_share", "churn_rate"):
            self._require(name, 0 <= getattr(self, name) <= 1, "0 to 1")
        for name in ("report_mean_days", "usual_report_days", "withdrawal_days", "churn_slowdown_days"):
            self._require(name, 0 < getattr(self, name) <= 3650, "more than 0, at most 3650")
        self._require(
            "late_report_days", self.usual_report_days <= self.late_report_days <= 3650, "usual_report_days or more"
        )

    def to_json(self) -> dict[str, int | float | str]:
        """As dataset.json has it: the start as an ISO date; nothing of churn where nobody leaves."""
        values = {**asdict(self), "start": self.start.isoformat()}
        return values if self.churn_rate else {k: v for k, v in values.items() if not k.startswith("churn_")}

    def _require(self, name: str, holds: bool, right: str) -> None:
        if not holds:
            raise ParameterError(f"{name} is {getattr(self, name)}, must be {right}")
