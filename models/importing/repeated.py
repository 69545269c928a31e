"""Which rows of an import repeat an id that was there before, in whatever file: 16 bytes a row."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from models.importing.bad_rows import EXAMPLES_KEPT, BadRows

# Ordinals of rows → ordinal → id.
IdsOf = Callable[[NDArray[np.int64]], dict[int, str]]


class RepeatedIds:
    """Every row that is read gets an ordinal, its place among all of them."""

    def __init__(self) -> None:
        # id64 of every row that was read, in order; -1 where it is bad.
        self._ids: list[NDArray[np.int64]] = []
        self._rows = 0
        # First ordinal of each file.
        self._starts: list[tuple[int, str]] = []
        # id64 of all usable rows, sorted; there once `refuse` has looked at all of them.
        self.known = np.empty(0, dtype=np.int64)

    def begin(self, file: str) -> None:
        """The rows that follow are this file's."""
        self._starts.append((self._rows, file))

    def add(self, id64: NDArray[np.int64]) -> NDArray[np.int64]:
        """Ordinals of the next rows, given the id64 of their ids (-1: a bad row)."""
        self._ids.append(id64)
        ordinal = np.arange(self._rows, self._rows + len(id64))
        self._rows += len(id64)
        return ordinal

    def refuse(self, field: str, right: str, bad_rows: BadRows, ids_of: IdsOf) -> NDArray[np.int64]:
        """Ordinals of rows whose id was there before, now among the bad rows."""
        all_ids = np.concatenate([*self._ids, np.empty(0, dtype=np.int64)])
        self._ids = []
        self.known = np.sort(all_ids)
        self.known = self.known[np.searchsorted(self.known, 0) :]
        twice = np.unique(self.known[1:][self.known[1:] == self.known[:-1]])
        if not len(twice):
            return np.empty(0, dtype=np.int64)
        candidates = np.flatnonzero(np.isin(all_ids, twice))
        # Equal id64 is what feature state takes for the same event, so it is what counts as repeated here.
        first = candidates[np.unique(all_ids[candidates], return_index=True)[1]]
        repeated = np.setdiff1d(candidates, first)
        shown = repeated[:EXAMPLES_KEPT]
        texts = ids_of(shown)
        examples = [{**self._place(row), "value": texts[row]} for row in shown.tolist()]
        bad_rows.add(field, "repeated", right, len(repeated), examples)
        return repeated

    def _place(self, ordinal: int) -> dict[str, object]:
        start, file = next((start, file) for start, file in reversed(self._starts) if start <= ordinal)
        return {"file": file, "row": ordinal - start + 1}
