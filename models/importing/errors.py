"""What can be wrong with a user's own files.

ImportFailed
├── SourceError      a file cannot be read, lacks a column, or has one that means nothing here
└── BadRowsError     rows that cannot be used; carries the counts and examples
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from models.importing.bad_rows import BadRows


class ImportFailed(ValueError):
    """Root; the message names what was found and what would be right."""


class SourceError(ImportFailed):
    """A file of the user's that cannot be read, or a column that is not there or of a type that means nothing here."""


class BadRowsError(ImportFailed):
    """Rows that cannot be used: nothing was written."""

    def __init__(self, bad_rows: BadRows) -> None:
        super().__init__(
            f"{bad_rows.total:,} of {bad_rows.seen:,} rows cannot be used; nothing was written. "
            "Correct them, or leave them out with --skip-bad-rows"
        )
        self.bad_rows = bad_rows
