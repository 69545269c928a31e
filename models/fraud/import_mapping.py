"""Which of a user's columns is which field, and the names that are recognised without being told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from feature_store.validation import CURRENCIES

from models.fraud.errors import SourceError

# Field → the handbook's name. A field's own name is recognised too, and before it.
HANDBOOK = {
    "transaction_id": "TRANSACTION_ID",
    "event_time": "TX_DATETIME",
    "customer_id": "CUSTOMER_ID",
    "terminal_id": "TERMINAL_ID",
    "amount": "TX_AMOUNT",
    "fraud": "TX_FRAUD",
    "scenario": "TX_FRAUD_SCENARIO",
}
TRANSACTION_FIELDS = ("transaction_id", "event_time", "customer_id", "terminal_id", "amount")
TRANSACTION_OPTIONAL = ("currency", "fraud", "scenario")
REPORT_FIELDS = ("transaction_id", "reported_at")
REPORT_OPTIONAL = ("fraud", "scenario")

AmountUnit = Literal["major", "minor"]
TimeUnit = Literal["s", "ms", "us", "ns"]


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """How a user's files are to be read.

    columns, report_columns: field → column, for names that are not recognised. currency: for rows of files without a
    currency column. amount_unit: "major" (12.34) or "minor" (1234). time_unit: what whole numbers in time columns
    count since 1970-01-01 UTC; without it they are refused. delimiter: of CSV files.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    report_columns: Mapping[str, str] = field(default_factory=dict)
    currency: str = "EUR"
    amount_unit: AmountUnit = "major"
    time_unit: TimeUnit | None = None
    delimiter: str = ","
    skip_bad_rows: bool = False

    def __post_init__(self) -> None:
        _require_fields(self.columns, (*TRANSACTION_FIELDS, *TRANSACTION_OPTIONAL))
        _require_fields(self.report_columns, (*REPORT_FIELDS, *REPORT_OPTIONAL))
        if self.currency not in CURRENCIES:
            raise SourceError(f"currency is {self.currency!r}, must be an ISO 4217 code such as EUR")
        if len(self.delimiter) != 1:
            raise SourceError(f"delimiter is {self.delimiter!r}, must be one character")


def resolve(
    file: str, present: Sequence[str], told: Mapping[str, str], required: Sequence[str], optional: Sequence[str]
) -> dict[str, str]:
    """Field → column of one file. Raises SourceError, naming the field, where a required or a told one is not there."""
    found: dict[str, str] = {}
    for name in (*required, *optional):
        candidates = [told[name]] if name in told else [name, HANDBOOK.get(name, name)]
        column = next((candidate for candidate in candidates if candidate in present), None)
        if column is not None:
            if present.count(column) > 1:
                raise SourceError(f"{file}: two columns are called {column}")
            found[name] = column
        elif name in told or name in required:
            raise SourceError(
                f"{file}: no column {' or '.join(dict.fromkeys(candidates))} for {name}; "
                f"the columns are {', '.join(present)}. Say which with --map {name}=COLUMN"
            )
    return found


def _require_fields(told: Mapping[str, str], known: Sequence[str]) -> None:
    for name in told:
        if name not in known:
            raise SourceError(f"no field is called {name}; the fields are {', '.join(known)}")
