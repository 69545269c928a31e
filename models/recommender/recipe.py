"""What decides how towers are fitted; apart from the fitting, so that a nightly job needs none of its libraries."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that decides how towers are fitted.

    hidden: the share of a history that is hidden in each step. l2: weight decay of vectors, not of the bias.
    half_life_days: of an interaction's weight; None: all weigh the same. by_value: weights follow values.
    least_steps, most_steps: more epochs, or fewer, where users are so few, or so many, that `epochs` of them would be
    less, or more, batches than this.
    """

    dimensions: int = 64
    epochs: int = 40
    least_steps: int = 300
    most_steps: int = 4_000
    batch: int = 256
    learning_rate: float = 3e-3
    l2: float = 3e-4
    hidden: float = 0.5
    half_life_days: float | None = None
    by_value: bool = False
    seed: int = 0
