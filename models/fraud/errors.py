"""What can be wrong with what a user asks of the fraud model and its data.

FraudDataError
├── ParameterError   a parameter of the generator is out of range
├── SourceError      a file of the user's cannot be read, or lacks a column
├── BadRowsError     rows that cannot be used; carries the counts and examples
└── TooLittleData    days, frauds or labels that training or measuring needs are missing
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models.fraud.bad_rows import BadRows


class FraudDataError(ValueError):
    """Root; the message names what was found and what would be right."""


class ParameterError(FraudDataError):
    """A parameter out of range."""


class SourceError(FraudDataError):
    """A file of the user's that cannot be read, or a column that is not there or of a type that means nothing here."""


class TooLittleData(FraudDataError):
    """A fold cannot be trained or measured: days, frauds or labels are missing."""


class BadRowsError(FraudDataError):
    """Rows that cannot be used: nothing was written."""

    def __init__(self, bad_rows: BadRows) -> None:
        super().__init__(
            f"{bad_rows.total:,} of {bad_rows.seen:,} rows cannot be used; nothing was written. "
            "Correct them, or leave them out with --skip-bad-rows"
        )
        self.bad_rows = bad_rows
