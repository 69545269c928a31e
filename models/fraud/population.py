"""Customers, terminals and the transactions between them, before any fraud: the handbook's steps 1 to 4.

Vectorised: a day of all customers at once. Every day draws from its own random stream, made of the seed and the day.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from models.fraud.generator_parameters import GeneratorParameters

MAP_SIDE = 100.0
SECONDS_PER_DAY = 86_400
_PAIRS_AT_ONCE = 4_000_000


def stream(seed: int, stage: str, *index: int) -> np.random.Generator:
    """The random stream of one stage (and day): independent of all others, the same for the same seed."""
    return np.random.default_rng([seed, *stage.encode(), *index])


@dataclass(frozen=True, slots=True)
class Population:
    """C customers and T terminals on the map, and which terminals each customer can reach.

    customer_xy float64[C, 2], terminal_xy float64[T, 2]; mean_amount (major units), mean_per_day, and leaves
    (days from the first midnight until the customer is gone, inf for never) float64[C];
    reach int64[R] lists terminals, customer c's are reach[reach_start[c] : reach_start[c + 1]].
    """

    customer_xy: NDArray[np.float64]
    terminal_xy: NDArray[np.float64]
    mean_amount: NDArray[np.float64]
    mean_per_day: NDArray[np.float64]
    leaves: NDArray[np.float64]
    reach: NDArray[np.int64]
    reach_start: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Transactions:
    """n transactions in event-time order (ties by customer): columns int64[n].

    second: since the first day's midnight; amount: minor units, at least 1.
    """

    second: NDArray[np.int64]
    customer: NDArray[np.int64]
    terminal: NDArray[np.int64]
    amount: NDArray[np.int64]

    @property
    def day(self) -> NDArray[np.int64]:
        return self.second // SECONDS_PER_DAY


def make_population(parameters: GeneratorParameters) -> Population:
    """Profiles as the handbook draws them: mean amount U(5, 100), transactions a day U(0, 4)."""
    random = stream(parameters.seed, "customers")
    customer_xy = random.uniform(0, MAP_SIDE, (parameters.customers, 2))
    mean_amount = random.uniform(5, 100, parameters.customers)
    mean_per_day = random.uniform(0, 4, parameters.customers)
    terminal_xy = stream(parameters.seed, "terminals").uniform(0, MAP_SIDE, (parameters.terminals, 2))
    reach, reach_start = _within(customer_xy, terminal_xy, parameters.radius)
    leaves = _departures(parameters)
    return Population(customer_xy, terminal_xy, mean_amount, mean_per_day, leaves, reach, reach_start)


def make_transactions(
    population: Population, parameters: GeneratorParameters, advance: Callable[[int], None] = lambda days: None
) -> Transactions:
    """All days' transactions; `advance(1)` is called after each day."""
    days = []
    for day in range(parameters.days):
        activity = _activity(population, parameters, day)
        days.append(_make_day(population, activity, stream(parameters.seed, "transactions", day), day))
        advance(1)
    columns = [np.concatenate([getattr(day, name) for day in days]) for name in Transactions.__slots__]
    return Transactions(*columns)


def _departures(parameters: GeneratorParameters) -> NDArray[np.float64]:
    """When each customer leaves, in days; of a stream of its own, so that it changes nothing else."""
    if not parameters.churn_rate:
        return np.full(parameters.customers, np.inf)
    random = stream(parameters.seed, "departures")
    hazard = random.exponential(parameters.churn_rate / 30.0, parameters.customers)
    return random.exponential(1.0, parameters.customers) / hazard


def _activity(population: Population, parameters: GeneratorParameters, day: int) -> NDArray[np.float64]:
    """float64[C]: the share of their usual transactions that customers make on this day."""
    left: NDArray[np.float64] = (population.leaves - day) / parameters.churn_slowdown_days
    return np.clip(left, 0.0, 1.0)


def _make_day(
    population: Population, activity: NDArray[np.float64], random: np.random.Generator, day: int
) -> Transactions:
    reachable = np.diff(population.reach_start)
    # Who reaches no terminal buys nothing.
    rate = np.where(reachable > 0, population.mean_per_day, 0.0) * activity
    customer = np.repeat(np.arange(len(rate)), random.poisson(rate))
    second = np.trunc(random.normal(SECONDS_PER_DAY / 2, 20_000, len(customer))).astype(np.int64)
    in_day = (second > 0) & (second < SECONDS_PER_DAY)
    customer, second = customer[in_day], second[in_day]
    mean = population.mean_amount[customer]
    amount = random.normal(mean, mean / 2)
    amount = np.where(amount < 0, random.uniform(0, 2 * mean), amount)
    choice = (random.random(len(customer)) * reachable[customer]).astype(np.int64)
    terminal = population.reach[population.reach_start[customer] + choice]
    order = np.lexsort((customer, second))
    minor = np.maximum(np.rint(amount * 100).astype(np.int64), 1)
    return Transactions(second[order] + day * SECONDS_PER_DAY, customer[order], terminal[order], minor[order])


def _within(
    customer_xy: NDArray[np.float64], terminal_xy: NDArray[np.float64], radius: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(reach, reach_start) of Population: terminals nearer than `radius`, ascending for each customer."""
    by_x = np.argsort(terminal_xy[:, 0], kind="stable")
    sorted_x = terminal_xy[by_x, 0]
    first = np.searchsorted(sorted_x, customer_xy[:, 0] - radius, side="left")
    count = np.searchsorted(sorted_x, customer_xy[:, 0] + radius, side="right") - first
    reached, lengths = [], []
    for begin, end in _chunks(count):
        pairs = count[begin:end]
        customer = np.repeat(np.arange(begin, end), pairs)
        offset = np.arange(len(customer)) - np.repeat(np.cumsum(pairs) - pairs, pairs)
        terminal = by_x[first[customer] + offset]
        near = ((customer_xy[customer] - terminal_xy[terminal]) ** 2).sum(axis=1) < radius**2
        customer, terminal = customer[near], terminal[near]
        reached.append(terminal[np.lexsort((terminal, customer))])
        lengths.append(np.bincount(customer - begin, minlength=end - begin))
    reach_start = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)
    return np.concatenate(reached).astype(np.int64), reach_start


def _chunks(count: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Runs of customers whose pairs to look at fit in memory together."""
    chunk = np.cumsum(count) // _PAIRS_AT_ONCE
    edges = [0, *(np.flatnonzero(np.diff(chunk)) + 1).tolist(), len(count)]
    return pairwise(edges)
