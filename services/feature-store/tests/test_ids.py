"""Ids as int64: numeric ones are themselves, others a hash above them; one by one and by column alike."""

from __future__ import annotations

import pyarrow as pa
import pytest
from feature_store.history import id64_column
from feature_store.ids import ID_PATTERN, id64, id64_array
from hypothesis import given
from hypothesis import strategies as st

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._:-"
IDS = st.one_of(
    st.text(LETTERS, min_size=1, max_size=64),
    st.integers(0, 10**20).map(str),
    st.integers(0, 10**6).map(lambda n: f"0{n}"),
)


@pytest.mark.parametrize(("text", "number"), [("0", 0), ("7", 7), ("10", 10), ("9" * 18, 10**18 - 1)])
def test_canonical_decimals_are_themselves(text: str, number: int) -> None:
    assert id64(text) == number


@pytest.mark.parametrize("text", ["00", "007", "1" + "0" * 18, "9" * 64, "-1", "1.0", "tx-1", "٣", "²", "1\n"])
def test_anything_else_is_above_every_decimal(text: str) -> None:
    assert 1 << 62 <= id64(text) < 1 << 63


@given(st.lists(IDS, max_size=40))
def test_columns_and_arrays_agree_with_single_ids(texts: list[str]) -> None:
    expected = [id64(t) for t in texts]
    assert id64_array(texts).tolist() == expected
    column = pa.chunked_array([pa.array(texts[:3], pa.string()), pa.array(texts[3:], pa.string())])
    assert id64_column(column).tolist() == expected
    assert all(0 <= n < 1 << 63 for n in expected)


@given(st.lists(IDS, unique=True, max_size=200))
def test_distinct_ids_stay_distinct(texts: list[str]) -> None:
    assert len({id64(t) for t in texts}) == len(texts)


def test_the_order_of_numeric_ids_is_that_of_numbers() -> None:
    assert id64("9") < id64("10") < id64("111") < id64("A")


@pytest.mark.parametrize("text", ["", "a" * 65, "a b", "é", "a/b", "a\n"])
def test_pattern_refuses(text: str) -> None:
    assert not ID_PATTERN.fullmatch(text)
