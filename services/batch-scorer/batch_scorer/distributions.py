"""How a run's outputs are distributed: counted by the executors a part at a time, added up, compared between runs.

A bin is a float32's sign, exponent and first bits of its mantissa: narrow everywhere, whatever the range, with nothing
to declare. Fine bins (11 bits of mantissa, 0.05% wide) tell a constant; coarse ones (5 bits, 3%) are kept in the
manifest and give the population stability index.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

_FINE_BITS, _COARSE_BITS = 20, 14
_PSI_BINS = 10


@dataclass(frozen=True, slots=True)
class Distribution:
    """One output over some rows. `fine`: bin -> how many values; empty for outputs that are no numbers.

    nulls: rows with a null, or with an empty ranking. values: numbers counted (of a vector or ranking, all of its).
    """

    rows: int
    nulls: int
    values: int
    total: float
    least: float
    greatest: float
    fine: Mapping[int, int]

    @property
    def same_share(self) -> float:
        """Share of the values in the fullest fine bin."""
        return max(self.fine.values(), default=0) / self.values if self.values else 0.0

    @property
    def null_share(self) -> float:
        return self.nulls / self.rows if self.rows else 0.0

    @property
    def mean(self) -> float:
        return self.total / self.values if self.values else 0.0

    @property
    def coarse(self) -> dict[int, int]:
        """Coarse bin -> how many values, in order of the values."""
        bins: dict[int, int] = {}
        for code, count in sorted(self.fine.items()):
            coarse = code >> (_FINE_BITS - _COARSE_BITS)
            bins[coarse] = bins.get(coarse, 0) + count
        return bins

    def __add__(self, other: Distribution) -> Distribution:
        fine = dict(self.fine)
        for code, count in other.fine.items():
            fine[code] = fine.get(code, 0) + count
        return Distribution(
            self.rows + other.rows, self.nulls + other.nulls, self.values + other.values, self.total + other.total,
            min(self.least, other.least), max(self.greatest, other.greatest), fine,
        )  # fmt: skip

    def to_json(self) -> dict[str, object]:
        """What executors send to the driver; bins as two lists."""
        out: dict[str, object] = {name: getattr(self, name) for name in self.__slots__ if name != "fine"}
        return out | {"bins": list(self.fine), "counts": list(self.fine.values())}

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Distribution:  # Any: JSON
        values = dict(found)
        bins, counts = values.pop("bins"), values.pop("counts")
        return cls(**values, fine=dict(zip(bins, counts, strict=True)))


def distribution_of(column: pa.ChunkedArray) -> Distribution:
    """Of one output's rows. Values that are not finite are counted as nulls."""
    rows, nulls = len(column), column.null_count
    if pa.types.is_list(column.type):
        nulls += int(pc.sum(pc.equal(pc.list_value_length(column), 0)).as_py() or 0)
        column = pc.struct_field(pc.list_flatten(column), "score")
    elif pa.types.is_fixed_size_list(column.type):
        column = pc.list_flatten(column)
    if pa.types.is_string(column.type):
        return Distribution(rows, nulls, 0, 0.0, np.inf, -np.inf, {})
    numbers = column.drop_null().cast(pa.float32(), safe=False).to_numpy()
    finite = numbers[np.isfinite(numbers)]
    counts = np.bincount(fine_bins(finite))
    codes = np.flatnonzero(counts)
    return Distribution(
        rows, nulls + len(numbers) - len(finite), len(finite), float(finite.sum(dtype=np.float64)),
        float(finite.min(initial=np.inf)), float(finite.max(initial=-np.inf)),
        dict(zip(codes.tolist(), counts[codes].tolist(), strict=True)),
    )  # fmt: skip


def fine_bins(values: NDArray[np.float32]) -> NDArray[np.int64]:
    """The fine bin of each finite value: int64 [n], in the order of the values."""
    bits = (np.ascontiguousarray(values, dtype=np.float32) + np.float32(0.0)).view(np.uint32)  # -0.0 becomes 0.0
    ordered = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    return (ordered >> np.uint32(32 - _FINE_BITS)).astype(np.int64)


def lower_edge(coarse: int) -> float:
    """The least value of a coarse bin."""
    ordered = np.uint32(coarse << (32 - _COARSE_BITS))
    bits = ordered ^ np.uint32(1 << 31) if ordered >> 31 else ~ordered
    return float(np.array([bits], dtype=np.uint32).view(np.float32)[0])


def psi(before: Mapping[int, int], now: Mapping[int, int]) -> tuple[float, float]:
    """Population stability index of two sets of coarse bins, and what it may be by chance at these sizes (3 sigma).

    Bins: at most ten, as even as the earlier distribution allows. Sum over bins of (q - p) ln(q / p), half a count
    added to each. By chance it is (1/n + 1/m) times a chi-squared of bins - 1 degrees of freedom (Yurdakul 2018).
    """
    codes = sorted(set(before) | set(now))
    p = np.array([before.get(code, 0) for code in codes], dtype=np.float64)
    q = np.array([now.get(code, 0) for code in codes], dtype=np.float64)
    if not p.sum() or not q.sum():
        return (0.0, 0.0) if p.sum() == q.sum() else (float("inf"), 0.0)
    # A bin belongs to the decile that its middle falls into.
    decile = np.minimum(((p.cumsum() - p / 2) / p.sum() * _PSI_BINS).astype(np.int64), _PSI_BINS - 1)
    bins = np.unique(decile, return_inverse=True)[1]
    n = int(bins.max()) + 1
    p, q = (np.bincount(bins, counts, n).astype(np.float64) for counts in (p, q))
    of_p, of_q = (p + 0.5) / (p.sum() + 0.5 * n), (q + 0.5) / (q.sum() + 0.5 * n)
    chance = (1 / p.sum() + 1 / q.sum()) * (n - 1 + 3 * np.sqrt(2 * (n - 1)))
    return float(((of_q - of_p) * np.log(of_q / of_p)).sum()), float(chance)
