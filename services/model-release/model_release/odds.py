"""Odds to the power of sixteenths, multiplied: how calibrated probabilities are combined, equal to the bit anywhere.

A logistic regression on logits, l = b + sum of w l_i, is a product of odds: o = exp(b) * product of o_i ^ w_i.
With the powers put on a grid of sixteenths it needs square roots, products and quotients only, which IEEE 754 rounds
correctly; exponentials and logarithms differ between machines. So gateway, Spark and replay agree to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

#: The greatest probability that has odds in float32 arithmetic, and the least that is answered.
MOST, LEAST = 1.0 - 2.0**-24, 2.0**-100

N = TypeVar("N", float, NDArray[np.float64])


def power(probability: float, sixteenths: int) -> float:
    """odds(probability) ^ (sixteenths / 16); probability above 0 and below 1."""
    return _power(probability, sixteenths, math.sqrt)


def powers(probability: NDArray[np.float64], sixteenths: int) -> NDArray[np.float64]:
    """`power` of a column float64[n], to the bit."""
    return _power(probability, sixteenths, np.sqrt)


def chance(odds: float) -> float:
    """The probability with these odds, as float32 has it, between LEAST and MOST."""
    return float(np.float32(min(max(odds / (1.0 + odds), LEAST), MOST)))


def chances(odds: NDArray[np.float64]) -> NDArray[np.float32]:
    """`chance` of a column float64[n], float32[n], to the bit."""
    return np.clip(odds / (1.0 + odds), LEAST, MOST).astype(np.float32)


def _power(probability: N, sixteenths: int, sqrt: Callable[[N], N]) -> N:
    root = probability / (1.0 - probability)
    for _ in range(4):
        root = sqrt(root)
    found = root / root
    # From the highest binary digit down: the same products in the same order everywhere.
    for digit in f"{sixteenths:b}":
        found = found * found
        if digit == "1":
            found = found * root
    return found
