"""Which transactions are fraud: the handbook's three scenarios, applied in its order (a later one renames an earlier).

1  amount over 220.00
2  every day 2 terminals are compromised: all their transactions of this and the next 27 days
3  every day 3 customers are compromised: of their transactions of this and the next 13 days a third, amount times 5
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.fraud.generator_parameters import GeneratorParameters
from models.fraud.population import Transactions, stream

HIGH_AMOUNT_MINOR = 22_000
TERMINALS_PER_DAY, TERMINAL_DAYS = 2, 28
CUSTOMERS_PER_DAY, CUSTOMER_DAYS, CUSTOMER_FACTOR = 3, 14, 5


@dataclass(frozen=True, slots=True)
class Frauds:
    """amount int64[n] after scenario 3 (minor units); scenario int32[n], 0 = genuine;
    terminals int64[days, <=2] and customers int64[days, <=3]: who was compromised from that day on.
    """

    amount: NDArray[np.int64]
    scenario: NDArray[np.int32]
    terminals: NDArray[np.int64]
    customers: NDArray[np.int64]


def apply_scenarios(transactions: Transactions, parameters: GeneratorParameters) -> Frauds:
    """Frauds among `transactions`, by `parameters.seed`."""
    terminals = _draws(parameters, "scenario-2", parameters.terminals, TERMINALS_PER_DAY)
    customers = _draws(parameters, "scenario-3", parameters.customers, CUSTOMERS_PER_DAY)
    scenario = np.where(transactions.amount > HIGH_AMOUNT_MINOR, 1, 0).astype(np.int32)
    amount = transactions.amount.copy()

    of_terminal = _Grouped(transactions.terminal, transactions.day)
    for day, drawn in enumerate(terminals):
        scenario[of_terminal.rows(drawn, day, day + TERMINAL_DAYS)] = 2

    of_customer = _Grouped(transactions.customer, transactions.day)
    for day, drawn in enumerate(customers):
        rows = of_customer.rows(drawn, day, day + CUSTOMER_DAYS)
        random = stream(parameters.seed, "scenario-3-rows", day)
        third = random.permutation(rows)[: len(rows) // 3]
        # A customer compromised twice at once may see an amount raised twice, as in the handbook.
        amount[third] *= CUSTOMER_FACTOR
        scenario[third] = 3
    return Frauds(amount, scenario, terminals, customers)


def _draws(parameters: GeneratorParameters, stage: str, population: int, size: int) -> NDArray[np.int64]:
    """int64[days, size]: different ones each, drawn anew every day."""
    random = stream(parameters.seed, stage)
    size = min(size, population)
    return np.array([random.choice(population, size, replace=False) for _ in range(parameters.days)], dtype=np.int64)


class _Grouped:
    """Rows by (key, day), for finding those of some keys in a range of days."""

    def __init__(self, key: NDArray[np.int64], day: NDArray[np.int64]) -> None:
        self._days = int(day.max()) + 1 if len(day) else 1
        place = key * self._days + day
        self._order = np.argsort(place, kind="stable")
        self._place = place[self._order]

    def rows(self, keys: NDArray[np.int64], from_day: int, to_day: int) -> NDArray[np.int64]:
        """Row numbers with key in `keys` and from_day <= day < to_day."""
        begin = np.searchsorted(self._place, keys * self._days + min(from_day, self._days))
        end = np.searchsorted(self._place, keys * self._days + min(to_day, self._days))
        return np.concatenate([self._order[b:e] for b, e in zip(begin, end, strict=True)])
