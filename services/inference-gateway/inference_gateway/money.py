"""Amounts as people write them, as whole minor units: 123.45 EUR is 12345."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation

from feature_store.validation import MAX_MINOR, MIN_MINOR, MINOR_DIGITS

_LONGEST = 32
#: Far beyond any amount, and small enough to calculate with.
_LARGEST_EXPONENT = 20


def minor_units(amount: str, currency: str) -> int:
    """`amount`, a decimal text, in minor units of `currency`. Raises ValueError that says what would be right."""
    digits = MINOR_DIGITS.get(currency, 2)
    try:
        value = Decimal(amount)
    except InvalidOperation:
        value = Decimal("NaN")
    if not value.is_finite() or len(amount) > _LONGEST or abs(value.adjusted()) > _LARGEST_EXPONENT:
        raise ValueError(f'is {amount[:40]!r}; must be a decimal number such as "123.45"')
    minor = value.scaleb(digits)
    if minor != minor.to_integral_value():
        raise ValueError(f"is {amount!r}; {currency} has {digits} digits after the point")
    if not MIN_MINOR <= minor <= MAX_MINOR:
        raise ValueError(f"is {amount!r}; must be {MIN_MINOR} to {MAX_MINOR} minor units")
    return int(minor)
