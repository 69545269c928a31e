"""What the import refuses, reason by reason, and that amounts, times and ids come through exactly."""

from __future__ import annotations

import datetime as dt
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped]  # its stubs are not worth a dependency of the tests
import pyarrow as pa
import pytest
from feature_store.ids import id64
from hypothesis import given
from hypothesis import strategies as st

from models.fraud.import_amounts import amounts_minor
from models.fraud.import_mapping import ImportOptions
from models.fraud.importer import import_dataset
from models.fraud.sources import load_transactions
from models.importing.bad_rows import BadRows, RowCheck
from models.importing.errors import BadRowsError
from models.importing.text import ids64
from models.importing.times import times_us

GOOD: dict[str, object] = {
    "transaction_id": "a1",
    "event_time": "2018-04-01T10:00:00Z",
    "customer_id": "c1",
    "terminal_id": "t1",
    "amount": "12.34",
    "currency": "EUR",
    "fraud": "0",
    "scenario": "0",
}

BAD: list[tuple[str, str, str]] = [
    ("transaction_id", "", "missing"),
    ("transaction_id", "a b", "malformed"),
    ("transaction_id", "a" * 65, "malformed"),
    ("transaction_id", "é", "malformed"),
    ("transaction_id", "a\n", "malformed"),
    ("customer_id", "", "missing"),
    ("customer_id", "nan", "missing"),
    ("customer_id", "c/1", "malformed"),
    ("terminal_id", "NULL", "missing"),
    ("terminal_id", " t1", "malformed"),
    ("amount", "", "missing"),
    ("amount", "NaN", "not a number"),
    ("amount", "inf", "not a number"),
    ("amount", "12,34", "not a number"),
    ("amount", "1.2.3", "not a number"),
    ("amount", "1e3", "not a number"),
    ("amount", ".", "not a number"),
    ("amount", "-0.01", "negative"),
    ("amount", "-12", "negative"),
    ("amount", "-0.001", "negative"),
    ("amount", "12.345", "finer than the minor unit"),
    ("amount", "0.001", "finer than the minor unit"),
    ("amount", "0.00000000000000000000001", "finer than the minor unit"),
    ("amount", "85.649999", "finer than the minor unit"),
    ("amount", "10000000000.01", "too large"),
    ("amount", "9" * 400, "too large"),
    ("currency", "", "missing"),
    ("currency", "eur", "unknown"),
    ("currency", "XXX", "unknown"),
    ("currency", "€", "unknown"),
    ("event_time", "", "missing"),
    ("event_time", "yesterday", "malformed"),
    ("event_time", "2018-02-29T00:00:00Z", "malformed"),
    ("event_time", "2018-13-01", "malformed"),
    ("event_time", "2018-04-01T24:00:00Z", "malformed"),
    ("event_time", "2018-04-01T10:00:00+25:00", "malformed"),
    ("event_time", "04/01/2018", "malformed"),
    ("event_time", "1522576800", "malformed"),
    ("event_time", "1999-12-31T23:59:59.999999Z", "out of range"),
    ("event_time", "2100-01-01T00:00:00Z", "out of range"),
    ("event_time", "2100-01-01T01:00:00+00:30", "out of range"),
    ("fraud", "", "missing"),
    ("fraud", "2", "malformed"),
    ("scenario", "-1", "malformed"),
    ("scenario", "1.5", "malformed"),
]


def import_rows(
    folder: Path, rows: list[dict[str, object]], skip: bool = False, name: str = "rows.csv"
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """(bad rows as reported, rows of the dataset or [] where none was written)."""
    frame = pd.DataFrame(rows)
    if name.endswith("csv"):
        frame.to_csv(folder / name, index=False)
    else:
        frame.to_parquet(folder / name, index=False)
    try:
        described = import_dataset(folder / name, folder / "dataset", ImportOptions(skip_bad_rows=skip))
    except BadRowsError as error:
        assert not (folder / "dataset").exists()
        return error.bad_rows.to_json(), []
    assert json.loads((folder / "dataset" / "dataset.json").read_text()) == described
    return described["bad_rows"], load_transactions(folder / "dataset").to_pylist()


@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet"])
@pytest.mark.parametrize(("field", "value", "reason"), BAD)
def test_a_bad_row_stops_the_import_and_is_named(
    tmp_path: Path, field: str, value: str, reason: str, name: str
) -> None:
    rows = [GOOD, {**GOOD, "transaction_id": "a2", field: value}, {**GOOD, "transaction_id": "a3"}]
    bad_rows, written = import_rows(tmp_path, rows, name=name)
    assert written == []
    (found,) = bad_rows["reasons"]
    assert (found["field"], found["reason"], found["rows"]) == (field, reason, 1)
    (example,) = found["examples"]
    assert (example["file"], example["row"]) == (name, 2)
    assert example["value"] is None or value.startswith(example["value"].rstrip("…"))
    assert found["right"]


def test_skipping_writes_the_good_rows_and_the_account_of_the_others(tmp_path: Path) -> None:
    rows = [{**GOOD, "transaction_id": f"b{i}", field: value} for i, (field, value, _) in enumerate(BAD)]
    rows += [{**GOOD, "transaction_id": f"g{i}"} for i in range(5)]
    bad_rows, written = import_rows(tmp_path, rows, skip=True)
    assert sorted(row["transaction_id"] for row in written) == [f"g{i}" for i in range(5)]
    assert bad_rows["rows"] == len(BAD)
    counted = {(r["field"], r["reason"]): r["rows"] for r in bad_rows["reasons"]}
    for field, _, reason in BAD:
        assert counted[field, reason] == sum((f, r) == (field, reason) for f, _, r in BAD)
    assert max(len(r["examples"]) for r in bad_rows["reasons"]) == 3


def test_a_row_with_several_faults_counts_once(tmp_path: Path) -> None:
    bad_rows, _ = import_rows(tmp_path, [GOOD, {**GOOD, "amount": "-1", "currency": "?", "customer_id": ""}])
    assert (bad_rows["rows"], [r["rows"] for r in bad_rows["reasons"]]) == (1, [1])


def test_a_repeated_id_is_bad_from_the_second_on(tmp_path: Path) -> None:
    rows = [{**GOOD, "transaction_id": id_, "amount": str(i)} for i, id_ in enumerate(["7", "x", "7", "8", "x", "7"])]
    # A bad row does not take its id from a good one.
    rows.insert(0, {**GOOD, "transaction_id": "8", "amount": "-1"})
    refused, _ = import_rows(tmp_path, rows)
    reason = next(r for r in refused["reasons"] if r["reason"] == "repeated")
    assert reason["rows"] == 3
    assert [(e["row"], e["value"]) for e in reason["examples"]] == [(4, "7"), (6, "x"), (7, "7")]
    _, written = import_rows(tmp_path, rows, skip=True)
    assert {row["transaction_id"]: row["amount"] for row in written} == {"7": 0, "x": 100, "8": 300}


def test_a_repeated_id_in_another_file_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    for name in ("1.csv", "2.csv"):
        pd.DataFrame([{**GOOD, "transaction_id": "only-" + name}, GOOD]).to_csv(folder / name, index=False)
    with pytest.raises(BadRowsError, match="1 of 4 rows") as error:
        import_dataset(folder, tmp_path / "dataset", ImportOptions())
    (reason,) = error.value.bad_rows.reasons.values()
    assert reason.examples == [{"file": "2.csv", "row": 2, "value": "a1"}]


def test_a_csv_row_with_other_cells_than_the_header_is_bad(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("transaction_id,event_time,customer_id,terminal_id,amount\na,2018-04-01,c,t,1\nb,2018-04-01,c\n")
    with pytest.raises(BadRowsError, match="1 of 2 rows") as error:
        import_dataset(file, tmp_path / "dataset", ImportOptions())
    (reason,) = error.value.bad_rows.reasons.values()
    assert (reason.reason, reason.right) == ("3 cells", "5 cells, as in the first line")


def test_gaps_in_columns_of_numbers_are_missing_not_other_ids(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [
        {**GOOD, "transaction_id": i, "customer_id": customer, "amount": amount}
        for i, (customer, amount) in enumerate([(1.0, 1.5), (float("nan"), 2.5), (2.5, 3.5), (4.0, float("nan"))])
    ]
    bad_rows, written = import_rows(tmp_path, rows, skip=True, name="rows.parquet")
    assert [(row["customer_id"], row["amount"]) for row in written] == [("1", 150)]
    found = {(r["field"], r["reason"]) for r in bad_rows["reasons"]}
    assert found <= {
        ("customer_id", "missing"),
        ("customer_id", "malformed"),
        ("amount", "not a number"),
        ("amount", "missing"),
    }
    assert bad_rows["rows"] == 3


def minor(column: pa.Array[Any], digits: int) -> tuple[list[int], list[bool], list[str]]:
    bad_rows = BadRows()
    check = RowCheck(bad_rows, "file", 1, len(column))
    values = amounts_minor(column, np.full(len(column), digits), check)
    return values.tolist(), check.bad.tolist(), [reason for _, reason in bad_rows.reasons]


AMOUNTS = st.integers(0, 10**12)
DIGITS = st.sampled_from([0, 2, 3])


@given(st.lists(AMOUNTS, min_size=1), DIGITS)
def test_every_amount_comes_through_exactly_from_every_type(amounts: list[int], digits: int) -> None:
    decimals = [Decimal(amount).scaleb(-digits) for amount in amounts]
    as_types = [
        pa.array([float(d) for d in decimals]),
        pa.array([format(d, "f") for d in decimals]),
        pa.array([format(d, "f") + ("000" if digits else ".000") for d in decimals]),
        pa.array(["+00" + format(d, "f") for d in decimals]),
        pa.array([repr(float(d)) if float(d) < 1e16 else format(d, "f") for d in decimals]),
        pa.array(decimals, pa.decimal128(20, digits)),
        pa.array([format(d, "f") for d in decimals]).dictionary_encode(),
    ]
    for column in as_types:
        assert minor(column, digits) == (amounts, [False] * len(amounts), [])


@given(st.integers(1, 10**9), st.integers(1, 99), DIGITS)
def test_fractions_of_the_minor_unit_are_refused_from_every_type(amount: int, part: int, digits: int) -> None:
    value = (Decimal(amount) + Decimal(part) / 100).scaleb(-digits)
    for column in (pa.array([float(value)]), pa.array([format(value, "f")]), pa.array([value])):
        assert minor(column, digits) == ([0], [True], ["finer than the minor unit"])


@given(st.integers(0, 22_000), st.sampled_from([2, 3, 5, 7]))
def test_what_float_arithmetic_left_beside_an_amount_is_that_amount(amount: int, factor: int) -> None:
    product = amount / 100 * factor
    for column in (pa.array([product]), pa.array([repr(product)])):
        assert minor(column, 2) == ([amount * factor], [False], [])


@given(st.integers(-(10**12), -1))
def test_negative_amounts_are_refused_from_every_type(amount: int) -> None:
    value = Decimal(amount) / 100
    for column in (pa.array([float(value)]), pa.array([format(value, "f")]), pa.array([value])):
        assert minor(column, 2)[1:] == ([True], ["negative"])


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_no_float_at_all_breaks_the_parser_or_slips_through(value: float) -> None:
    (found,), (bad,), _ = minor(pa.array([value]), 2)
    near = np.isfinite(value) and 0 <= value <= 10**10 and abs(value * 100 - round(value * 100)) < 1e-3
    assert bad or (near and found == round(value * 100))


@given(
    st.datetimes(dt.datetime(2000, 1, 1), dt.datetime(2099, 12, 31, 23, 59, 59, 999999)),
    st.integers(-14 * 60, 14 * 60),
)
def test_written_times_come_through_exactly(time: dt.datetime, offset: int) -> None:
    right = (time.replace(tzinfo=dt.UTC) - dt.datetime(1970, 1, 1, tzinfo=dt.UTC)) // dt.timedelta(microseconds=1)
    zoned = time.replace(tzinfo=dt.UTC).astimezone(dt.timezone(dt.timedelta(minutes=offset)))
    texts = [time.isoformat(), time.isoformat(" "), time.isoformat() + "Z", zoned.isoformat(), zoned.isoformat(" ")]
    texts.append(zoned.strftime("%Y-%m-%dT%H:%M:%S.%f000%z"))
    check = RowCheck(BadRows(), "file", 1, len(texts))
    assert times_us(pa.array(texts), "event_time", None, check).tolist() == [right] * len(texts)
    assert not check.bad.any()


@given(st.integers(-(2**63), 2**63 - 1), st.sampled_from(["s", "ms", "us", "ns"]))
def test_numbers_far_out_of_range_never_wrap_into_it(number: int, unit: Any) -> None:
    check = RowCheck(BadRows(), "file", 1, 1)
    (found,) = times_us(pa.array([number]), "event_time", unit, check).tolist()
    per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    right = number * 10**6 // per_second
    inside = 946_684_800_000_000 <= right < 4_102_444_800_000_000
    assert check.bad[0] == (not inside)
    assert not inside or found == right


def test_with_a_unit_text_may_still_be_a_written_time() -> None:
    check = RowCheck(BadRows(), "file", 1, 3)
    texts = pa.array(["1522576800", "2018-04-01T10:00:00Z", "1522576800.5"])
    assert times_us(texts, "event_time", "s", check).tolist()[:2] == [1_522_576_800_000_000] * 2
    assert check.bad.tolist() == [False, False, True]


@given(st.lists(st.from_regex(r"[A-Za-z0-9._:-]{1,64}", fullmatch=True) | st.integers(0, 10**19).map(str), min_size=1))
def test_ids_are_numbered_as_the_feature_store_numbers_them(ids: list[str]) -> None:
    assert ids64(pa.array(ids)).tolist() == [id64(text) for text in ids]
