"""What the fields of an event may hold: one definition for every door that events come in by (gRPC, REST, Kafka).

Rules follow from a field's name in the protobuf contract, so a new source gets them without code:
`*_id` an identifier, `*_us` a time, `amount` and `*_amount` money, `currency` an ISO 4217 code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from feature_store.ids import ID_PATTERN

MIN_TIME_US = 1
MAX_TIME_US = 4_102_444_800_000_000 - 1
"""The last microsecond of the year 2099, UTC."""
MIN_MINOR = 0
MAX_MINOR = 10**12
ID_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._:-"
MAX_ID_LENGTH = 64
_SHOWN = 80

CURRENCIES = frozenset(
    [
        "AED",
        "AFN",
        "ALL",
        "AMD",
        "ANG",
        "AOA",
        "ARS",
        "AUD",
        "AWG",
        "AZN",
        "BAM",
        "BBD",
        "BDT",
        "BGN",
        "BHD",
        "BIF",
        "BMD",
        "BND",
        "BOB",
        "BRL",
        "BSD",
        "BTN",
        "BWP",
        "BYN",
        "BZD",
        "CAD",
        "CDF",
        "CHF",
        "CLP",
        "CNY",
        "COP",
        "CRC",
        "CUP",
        "CVE",
        "CZK",
        "DJF",
        "DKK",
        "DOP",
        "DZD",
        "EGP",
        "ERN",
        "ETB",
        "EUR",
        "FJD",
        "FKP",
        "GBP",
        "GEL",
        "GHS",
        "GIP",
        "GMD",
        "GNF",
        "GTQ",
        "GYD",
        "HKD",
        "HNL",
        "HTG",
        "HUF",
        "IDR",
        "ILS",
        "INR",
        "IQD",
        "IRR",
        "ISK",
        "JMD",
        "JOD",
        "JPY",
        "KES",
        "KGS",
        "KHR",
        "KMF",
        "KPW",
        "KRW",
        "KWD",
        "KYD",
        "KZT",
        "LAK",
        "LBP",
        "LKR",
        "LRD",
        "LSL",
        "LYD",
        "MAD",
        "MDL",
        "MGA",
        "MKD",
        "MMK",
        "MNT",
        "MOP",
        "MRU",
        "MUR",
        "MVR",
        "MWK",
        "MXN",
        "MYR",
        "MZN",
        "NAD",
        "NGN",
        "NIO",
        "NOK",
        "NPR",
        "NZD",
        "OMR",
        "PAB",
        "PEN",
        "PGK",
        "PHP",
        "PKR",
        "PLN",
        "PYG",
        "QAR",
        "RON",
        "RSD",
        "RUB",
        "RWF",
        "SAR",
        "SBD",
        "SCR",
        "SDG",
        "SEK",
        "SGD",
        "SHP",
        "SLE",
        "SOS",
        "SRD",
        "SSP",
        "STN",
        "SVC",
        "SYP",
        "SZL",
        "THB",
        "TJS",
        "TMT",
        "TND",
        "TOP",
        "TRY",
        "TTD",
        "TWD",
        "TZS",
        "UAH",
        "UGX",
        "USD",
        "UYU",
        "UZS",
        "VED",
        "VES",
        "VND",
        "VUV",
        "WST",
        "XAF",
        "XCD",
        "XOF",
        "XPF",
        "YER",
        "ZAR",
        "ZMW",
        "ZWG",
    ]
)
"""ISO 4217 codes of money in circulation."""

MINOR_DIGITS = {
    **dict.fromkeys(["BIF", "CLP", "DJF", "GNF", "ISK", "JPY", "KMF", "KRW"], 0),
    **dict.fromkeys(["PYG", "RWF", "UGX", "VND", "VUV", "XAF", "XOF", "XPF"], 0),
    **dict.fromkeys(["BHD", "IQD", "JOD", "KWD", "LYD", "OMR", "TND"], 3),
}
"""Digits after the point by ISO 4217; two for all others."""


@dataclass(frozen=True, slots=True)
class IntegerRule:
    """A whole number from `low` to `high`, both included."""

    low: int
    high: int
    unit: str

    @property
    def wanted(self) -> str:
        """What would be right."""
        return f"{self.low} to {self.high} {self.unit}"

    def problem(self, value: int) -> str | None:
        """What is wrong with `value` and what would be right; None where nothing is."""
        return None if self.low <= value <= self.high else f"is {value}; must be {self.wanted}"


@dataclass(frozen=True, slots=True)
class TextRule:
    """A text that `pattern` matches whole and, where `known` is given, is one of those.

    `alphabet`: where set, the rule says no more than: 1 to MAX_ID_LENGTH of these ASCII characters.
    """

    pattern: re.Pattern[str]
    wanted: str
    known: frozenset[str] | None = None
    alphabet: bytes | None = None

    def problem(self, value: str) -> str | None:
        """What is wrong with `value` and what would be right; None where nothing is."""
        if self.pattern.fullmatch(value) and (self.known is None or value in self.known):
            return None
        shown = repr(value if len(value) <= _SHOWN else value[:_SHOWN] + "…")
        return f"is {shown if value else 'empty'}; must be {self.wanted}"


Rule = IntegerRule | TextRule

IDENTIFIER = TextRule(ID_PATTERN, f"1 to {MAX_ID_LENGTH} of A-Z a-z 0-9 . _ : -", alphabet=ID_ALPHABET)
TIME = IntegerRule(MIN_TIME_US, MAX_TIME_US, "microseconds since 1970-01-01 UTC (until the end of 2099)")
MONEY = IntegerRule(MIN_MINOR, MAX_MINOR, "minor units (cents)")
CURRENCY = TextRule(re.compile(r"[A-Z]{3}"), "an ISO 4217 code such as EUR", known=CURRENCIES)


def rule_of(field: str) -> Rule | None:
    """The rule of a protobuf field by its name; None where any value will do."""
    if field == "currency":
        return CURRENCY
    if field == "amount" or field.endswith("_amount"):
        return MONEY
    if field.endswith("_id"):
        return IDENTIFIER
    return TIME if field.endswith("_us") else None


@dataclass(frozen=True, slots=True)
class Problem:
    """A field, and a sentence that says what was found and what would be right."""

    field: str
    detail: str

    def __str__(self) -> str:
        return f"{self.field} {self.detail}"


def first_problem(fields: Mapping[str, int | str | None]) -> Problem | None:
    """The first field, in the mapping's order, that is missing (None) or whose value breaks its rule."""
    for name, value in fields.items():
        rule = rule_of(name)
        if value is None:
            return Problem(name, f"is missing; must be {rule.wanted if rule is not None else 'given'}")
        if rule is None:
            continue
        if isinstance(rule, TextRule) != isinstance(value, str):
            return Problem(name, f"is {value!r}; must be a {'text' if isinstance(rule, TextRule) else 'whole number'}")
        detail = rule.problem(value)  # type: ignore[arg-type]  # the line above paired rule and value
        if detail is not None:
            return Problem(name, detail)
    return None
