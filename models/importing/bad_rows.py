"""The account of rows that cannot be used: how many for which reason, with examples. A row counts once, for the first
reason found."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

EXAMPLES_KEPT = 3
_SHOWN = 80


@dataclass(slots=True)
class Reason:
    """`column` is the source's own name; `right` says what would have been accepted."""

    field: str
    reason: str
    right: str
    count: int = 0
    examples: list[dict[str, object]] = dataclasses.field(default_factory=list)


class BadRows:
    """All of an import's bad rows. `seen`: rows looked at; `total`: rows that cannot be used."""

    def __init__(self) -> None:
        self.seen = 0
        self.reasons: dict[tuple[str, str], Reason] = {}

    @property
    def total(self) -> int:
        return sum(reason.count for reason in self.reasons.values())

    def add(self, field_name: str, reason: str, right: str, count: int, examples: list[dict[str, object]]) -> None:
        """`count` more rows that fell for `reason`; as many of `examples` are kept as there is room for."""
        entry = self.reasons.setdefault((field_name, reason), Reason(field_name, reason, right))
        entry.count += count
        entry.examples.extend(examples[: EXAMPLES_KEPT - len(entry.examples)])

    def to_json(self) -> dict[str, object]:
        """As dataset.json and --json have it."""
        return {
            "rows": self.total,
            "reasons": [
                {"field": r.field, "reason": r.reason, "right": r.right, "rows": r.count, "examples": r.examples}
                for r in self.reasons.values()
            ],
        }


class RowCheck:
    """The rows of one batch while its columns are read: which are bad so far, bool[rows] in `bad`."""

    def __init__(self, bad_rows: BadRows, file: str, first_row: int, rows: int) -> None:
        self._bad_rows, self._file, self._first_row = bad_rows, file, first_row
        self.bad = np.zeros(rows, dtype=np.bool_)
        bad_rows.seen += rows

    def refuse(
        self,
        rows: NDArray[np.bool_],
        field_name: str,
        reason: str,
        right: str,
        # Any: a column of any type; it is only shown.
        shown: pa.Array[Any] | None = None,
    ) -> None:
        """Marks rows (bool[rows]) as bad; those that are already are not counted again."""
        fresh = np.flatnonzero(rows & ~self.bad)
        if not len(fresh):
            return
        self.bad[fresh] = True
        examples: list[dict[str, object]] = []
        for row in fresh[:EXAMPLES_KEPT].tolist():
            value = None if shown is None else shown[row].as_py()
            text = None if value is None else str(value)
            text = text if text is None or len(text) <= _SHOWN else text[:_SHOWN] + "…"
            examples.append({"file": self._file, "row": self._first_row + row, "value": text})
        self._bad_rows.add(field_name, reason, right, len(fresh), examples)
