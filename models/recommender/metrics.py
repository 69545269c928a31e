"""How well the first N recommendations meet what users then chose: nDCG, precision and recall, means over users.

Every held-out item is equally relevant. nDCG: Järvelin, Kekäläinen, "Cumulated gain-based evaluation of IR techniques",
2002, with gains of 1 and discounts 1 / log2(place + 1); the ideal has all held-out items first.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class RankingMetrics:
    """At 10 items; all 0..1, greater is better. `users`: over how many the means are."""

    ndcg_at_10: float
    precision_at_10: float
    recall_at_10: float
    users: int

    def rounded(self) -> dict[str, float | int]:
        """For people and manifests: six digits."""
        return {name: round(value, 6) for name, value in asdict(self).items()}


def ranking_metrics(
    ranked: NDArray[np.int64], held_row: NDArray[np.int64], held_item: NDArray[np.int64]
) -> RankingMetrics:
    """Of recommendations int64 [n, 10], best first, -1 for none; row held_row[k] held out item held_item[k], each once.

    Rows without a held-out item do not count; a row with fewer recommendations still divides its precision by 10.
    Raises ValueError where no row has one.
    """
    rows, places = ranked.shape
    relevant = np.bincount(held_row, minlength=rows)
    counted = relevant > 0
    if not counted.any():
        raise ValueError("metrics: no user has a held-out item")
    span = int(max(ranked.max(initial=0), held_item.max(initial=0))) + 1
    chosen = np.sort(held_row * span + held_item)
    asked = np.arange(rows)[:, None] * span + ranked
    place = np.minimum(np.searchsorted(chosen, asked), len(chosen) - 1)
    hit = (chosen[place] == asked) & (ranked >= 0)
    discount = 1.0 / np.log2(np.arange(2, places + 2))
    ideal = np.cumsum(discount)[np.minimum(relevant[counted], places) - 1]
    hits = hit[counted].sum(axis=1)
    return RankingMetrics(
        ndcg_at_10=float(((hit[counted] * discount).sum(axis=1) / ideal).mean()),
        precision_at_10=float((hits / places).mean()),
        recall_at_10=float((hits / relevant[counted]).mean()),
        users=int(counted.sum()),
    )
