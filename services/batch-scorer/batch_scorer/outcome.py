"""What replay says of a decision: equal, or different and in what. There is no third answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

Value = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Difference:
    """A field of the record that is not what the archive gives, or, with a `reason` alone, that it cannot give."""

    field: str
    recorded: Value = None
    recomputed: Value = None
    reason: str = ""

    @property
    def by(self) -> float | None:
        """How far apart two numbers are; None for anything else."""
        pair = (self.recorded, self.recomputed)
        if any(isinstance(v, bool) or not isinstance(v, int | float) for v in pair):
            return None
        return float(self.recomputed) - float(self.recorded)  # type: ignore[arg-type]  # the line above checked both

    def __str__(self) -> str:
        values = "" if self.recorded is None else f" is {self.recorded}"
        if self.recomputed is not None:
            values += f", from the archive {self.recomputed}"
        if self.by is not None:
            values += f" (off by {self.by:g})"
        return f"{self.field}{values}" + (f": {self.reason}" if self.reason else "")


@dataclass(frozen=True, slots=True)
class Replayed:
    """One decision record. Equal where there are no differences."""

    decision_id: str
    differences: tuple[Difference, ...] = ()

    @property
    def equal(self) -> bool:
        return not self.differences


@dataclass(slots=True)
class Report:
    """Counts over all replayed decisions; `examples`: the first that differ. `repeated`: records that were there twice,
    equal to the byte, and count once. `lag_ms`: the recorded feature lags."""

    decisions: int = 0
    different: int = 0
    repeated: int = 0
    sources: Counter[str] = field(default_factory=Counter)
    verdicts: Counter[str] = field(default_factory=Counter)
    releases: Counter[str] = field(default_factory=Counter)
    fields: Counter[str] = field(default_factory=Counter)
    examples: list[Replayed] = field(default_factory=list)
    lag_ms: list[int] = field(default_factory=list)

    @property
    def equal(self) -> int:
        return self.decisions - self.different

    def add(self, replayed: Replayed, keep: int = 20) -> None:
        """Count one; the first `keep` that differ are kept as examples."""
        self.decisions += 1
        if replayed.equal:
            return
        self.different += 1
        self.fields.update({d.field for d in replayed.differences})
        if len(self.examples) < keep:
            self.examples.append(replayed)

    def lag_percentiles(self, percents: Sequence[float] = (50, 90, 99, 100)) -> dict[str, int]:
        """Feature lag in milliseconds by percentile, `p50` and so on; empty without decisions."""
        if not self.lag_ms:
            return {}
        found = np.percentile(np.array(self.lag_ms), percents, method="higher")
        return {f"p{p:g}": int(v) for p, v in zip(percents, found.tolist(), strict=True)}
