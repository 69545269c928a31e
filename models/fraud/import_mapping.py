"""Which of a user's columns is which field, and the names that are recognised without being told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from feature_store.validation import CURRENCIES

from models.importing.columns import TimeUnit, require_delimiter, require_fields, resolve
from models.importing.errors import SourceError

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
        require_fields(self.columns, (*TRANSACTION_FIELDS, *TRANSACTION_OPTIONAL))
        require_fields(self.report_columns, (*REPORT_FIELDS, *REPORT_OPTIONAL))
        if self.currency not in CURRENCIES:
            raise SourceError(f"currency is {self.currency!r}, must be an ISO 4217 code such as EUR")
        require_delimiter(self.delimiter)


def resolve_columns(
    file: str, present: Sequence[str], told: Mapping[str, str], required: Sequence[str], optional: Sequence[str]
) -> dict[str, str]:
    """`models.importing.columns.resolve` with the handbook's names. Raises SourceError."""
    return resolve(file, present, told, required, optional, {name: (other,) for name, other in HANDBOOK.items()})
