"""`trine data import` on files as users have them: formats, mappings, labels, reports, exit codes."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped]  # its stubs are not worth a dependency of the tests
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from feature_store.dataset import DAY_US, times_us

from models.fraud.sources import load_fraud_reports, load_transactions, truth

START = pd.Timestamp("2018-04-01")


def handbook(rows: int = 500, seed: int = 0) -> pd.DataFrame:
    """Transactions with the handbook's names and types, over some days, in no order."""
    random = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "TRANSACTION_ID": random.permutation(rows),
            "TX_DATETIME": START + pd.to_timedelta(random.integers(0, 5 * 86_400, rows), unit="s"),
            "CUSTOMER_ID": random.integers(0, 40, rows).astype("int32"),
            "TERMINAL_ID": random.integers(0, 40, rows).astype("int32"),
            "TX_AMOUNT": random.integers(0, 100_000, rows) / 100,
            "TX_FRAUD": (random.random(rows) < 0.1).astype("int8"),
            "TX_FRAUD_SCENARIO": random.integers(0, 4, rows).astype("int8"),
        }
    )


def imported(folder: Path) -> pd.DataFrame:
    return load_transactions(folder).to_pandas()


def as_dataset(frame: pd.DataFrame) -> pd.DataFrame:
    """What the import of a handbook frame must give, by pandas."""
    ordered = frame.sort_values(["TX_DATETIME", "TRANSACTION_ID"]).reset_index(drop=True)
    return pd.DataFrame(
        {
            "transaction_id": ordered.TRANSACTION_ID.astype(str),
            "event_time": ordered.TX_DATETIME.dt.tz_localize("UTC").astype("datetime64[us, UTC]"),
            "customer_id": ordered.CUSTOMER_ID.astype(str),
            "terminal_id": ordered.TERMINAL_ID.astype(str),
            "amount": (ordered.TX_AMOUNT * 100).round().astype("int64"),
            "currency": "EUR",
        }
    )


def write(frame: pd.DataFrame, file: Path) -> Path:
    if file.name.endswith(".parquet"):
        frame.to_parquet(file, index=False)
    else:
        frame.to_csv(file, index=False)
    return file


@pytest.mark.parametrize("name", ["all.parquet", "all.csv", "all.csv.gz"])
def test_the_handbooks_names_need_no_mapping(trine: Any, tmp_path: Path, name: str) -> None:
    frame = handbook()
    out = tmp_path / "dataset"
    code, figures, _ = trine("data", "import", write(frame, tmp_path / name), "--out", out)
    assert (code, figures["transactions"], figures["bad_rows"]["rows"]) == (0, 500, 0)
    pd.testing.assert_frame_equal(imported(out), as_dataset(frame), check_dtype=False)
    reports = load_fraud_reports(out)
    frauds = frame[frame.TX_FRAUD == 1].set_index(frame[frame.TX_FRAUD == 1].TRANSACTION_ID.astype(str))
    assert sorted(reports.column("transaction_id").to_pylist()) == sorted(frauds.index)
    for row in reports.to_pylist():
        of = frauds.loc[row["transaction_id"]]
        assert row["reported_at"] == of.TX_DATETIME.tz_localize("UTC") + pd.Timedelta(days=7)
        assert row["fraud"] is True
        assert row["scenario"] == of.TX_FRAUD_SCENARIO


def test_a_folder_of_files_is_one_dataset(trine: Any, tmp_path: Path) -> None:
    frame = handbook()
    folder = tmp_path / "source" / "deep"
    folder.mkdir(parents=True)
    write(frame[:200], folder / "1.parquet")
    # Another order of columns and one that is not wanted.
    write(frame[200:].assign(NOTE='with "quotes", and\nlines')[[*reversed(frame.columns), "NOTE"]], folder / "2.csv")
    (folder / "_SUCCESS.csv").write_text("not,data\n")
    code, figures, _ = trine("data", "import", tmp_path / "source", "--out", tmp_path / "dataset")
    assert (code, figures["sources"]) == (0, ["1.parquet", "2.csv"])
    pd.testing.assert_frame_equal(imported(tmp_path / "dataset"), as_dataset(frame), check_dtype=False)


def test_columns_are_mapped_and_a_mapping_wins_over_a_known_name(trine: Any, tmp_path: Path) -> None:
    frame = handbook().rename(columns={"TRANSACTION_ID": "id", "TX_DATETIME": "when"})
    frame["cents"] = (frame.TX_AMOUNT * 100).round().astype("int64") + 1
    frame["ccy"] = "USD"
    options = ["--map", "transaction_id=id", "--map", "event_time=when", "--map", "amount=cents", "--map"]
    source = write(frame, tmp_path / "all.parquet")
    out = tmp_path / "dataset"
    code, _, _ = trine("data", "import", source, "--out", out, *options, "currency=ccy", "--amount-unit", "minor")
    assert code == 0
    right = as_dataset(frame.rename(columns={"id": "TRANSACTION_ID", "when": "TX_DATETIME"}))
    pd.testing.assert_frame_equal(
        imported(out), right.assign(amount=right.amount + 1, currency="USD"), check_dtype=False
    )


def test_a_dataset_of_ones_own_names_and_types(trine: Any, tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    file.write_text(
        "transaction_id;event_time;customer_id;terminal_id;amount;currency\n"
        "a-1;2024-02-29T23:30:00.1234567-01:00;c:1;t.1;0.00;EUR\n"
        "a-2;2024-02-29 22:00;c:1;t.1;1500;JPY\n"
        "a-3;2024-02-29 22:00:00Z;c:1;t.1;1.234;KWD\n"
    )
    code, _, _ = trine("data", "import", file, "--out", tmp_path / "dataset", "--delimiter", ";")
    assert code == 0
    rows = {row["transaction_id"]: row for row in load_transactions(tmp_path / "dataset").to_pylist()}
    assert [rows[i]["amount"] for i in ("a-1", "a-2", "a-3")] == [0, 1500, 1234]
    assert rows["a-1"]["event_time"] == pd.Timestamp("2024-03-01T00:30:00.123456Z")
    assert rows["a-2"]["event_time"] == rows["a-3"]["event_time"] == pd.Timestamp("2024-02-29T22:00Z")


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("name", ["all.csv", "all.parquet"])
def test_whole_numbers_as_times_need_their_unit(trine: Any, tmp_path: Path, unit: str, name: str) -> None:
    frame = handbook(20)
    per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    seconds = (frame.TX_DATETIME - pd.Timestamp(0)) // pd.Timedelta(seconds=1)
    source = write(frame.assign(TX_DATETIME=seconds * per_second), tmp_path / name)
    assert trine("data", "import", source, "--out", tmp_path / "refused")[0] == 3
    assert trine("data", "import", source, "--out", tmp_path / "dataset", "--time-unit", unit)[0] == 0
    pd.testing.assert_frame_equal(imported(tmp_path / "dataset"), as_dataset(frame), check_dtype=False)


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "America/New_York"])
def test_timestamps_of_any_resolution_and_zone(trine: Any, tmp_path: Path, unit: str, zone: str | None) -> None:
    frame = handbook(20)
    table = pa.Table.from_pandas(frame, preserve_index=False)
    # A zone in the type names how it is shown; the instant is the same.
    instants = pa.array(frame.TX_DATETIME.dt.tz_localize("UTC")).cast(pa.timestamp(unit, zone or "UTC"))
    column = instants if zone else instants.cast(pa.timestamp(unit))
    pq.write_table(table.set_column(1, "TX_DATETIME", column), tmp_path / "all.parquet")
    assert trine("data", "import", tmp_path / "all.parquet", "--out", tmp_path / "dataset")[0] == 0
    pd.testing.assert_frame_equal(imported(tmp_path / "dataset"), as_dataset(frame), check_dtype=False)


def test_reports_of_ones_own(trine: Any, tmp_path: Path) -> None:
    frame = handbook(10)
    source = write(frame, tmp_path / "all.parquet")
    reports = pd.DataFrame(
        {
            "tx": [3, 3, 4, 5],
            "reported_at": ["2018-04-09", "2018-05-01 12:00", "2018-04-10T00:00:00+02:00", "2017-01-01"],
            "is_fraud": [1, 0, 1, 1],
        }
    )
    given = write(reports, tmp_path / "reports.csv")
    options = ["--fraud-reports", given, "--map-reports", "transaction_id=tx", "--map-reports", "fraud=is_fraud"]
    code, figures, _ = trine("data", "import", source, "--out", tmp_path / "dataset", *options)
    assert (code, figures["fraud_reports"], figures["labels_reported_after_days"]) == (0, 4, None)
    loaded = load_fraud_reports(tmp_path / "dataset")
    # A report may come before its transaction; they are in order of when they came.
    assert loaded.column("transaction_id").to_pylist() == ["5", "3", "4", "3"]
    transactions = load_transactions(tmp_path / "dataset")
    said = dict(zip(transactions.column("transaction_id").to_pylist(), truth(transactions, loaded), strict=True))
    assert {id_ for id_, fraud in said.items() if fraud} == {"4", "5"}
    assert times_us(loaded, "reported_at")[2] % DAY_US == 22 * 3_600_000_000


def test_a_report_on_an_unknown_transaction_is_a_bad_row(trine: Any, tmp_path: Path) -> None:
    source = write(handbook(10), tmp_path / "all.parquet")
    given = write(
        pd.DataFrame({"transaction_id": [3, 77, -1], "reported_at": ["2018-04-09"] * 3}), tmp_path / "reports.csv"
    )
    options = ["--fraud-reports", given, "--out", tmp_path / "dataset"]
    code, figures, _ = trine("data", "import", source, *options)
    assert code == 3
    (reason,) = figures["bad_rows"]["reasons"]
    assert (reason["field"], reason["reason"], reason["rows"]) == ("transaction_id", "no such transaction", 2)
    assert trine("data", "import", source, *options, "--skip-bad-rows")[1]["fraud_reports"] == 1


def test_the_same_rows_in_another_order_and_format_make_the_same_files(trine: Any, tmp_path: Path) -> None:
    frame = handbook(400)
    folder = tmp_path / "parts"
    folder.mkdir()
    for part in range(4):
        write(frame[part::4], folder / f"{part}.{'csv' if part % 2 else 'parquet'}")
    trine("data", "import", write(frame, tmp_path / "all.parquet"), "--out", tmp_path / "a")
    trine("data", "import", folder, "--out", tmp_path / "b")
    names = sorted(file.relative_to(tmp_path / "a") for file in (tmp_path / "a").rglob("*.parquet"))
    assert names == sorted(file.relative_to(tmp_path / "b") for file in (tmp_path / "b").rglob("*.parquet"))
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--map", "amount"], 2, "must be FIELD=COLUMN"),
        (["--map", "amount=a", "--map", "amount=b"], 2, "given twice"),
        (["--map-reports", "fraud=x"], 2, "--fraud-reports"),
        (["--amount-unit", "cents"], 2, "--amount-unit"),
        (["--map", "amout=TX_AMOUNT"], 3, "no field is called amout; the fields are transaction_id"),
        (["--map", "amount=TX_AMUONT"], 3, "no column TX_AMUONT for amount; the columns are TRANSACTION_ID"),
        (["--currency", "EURO"], 3, "ISO 4217"),
        (["--fraud-reports", "nowhere.csv"], 3, "nowhere.csv: no such file"),
        (["--map", "terminal_id=WHEN"], 3, "terminal_id: a column of timestamp"),
        (["--map", "amount=FLOAT32"], 3, "amount: a column of float"),
    ],
)
def test_wrong_options_say_what_is_right(trine: Any, tmp_path: Path, options: list[str], code: int, said: str) -> None:
    frame = handbook(10)
    frame = frame.assign(WHEN=frame.TX_DATETIME, FLOAT32=frame.TX_AMOUNT.astype("float32"))
    source = write(frame, tmp_path / "all.parquet")
    found, _, stderr = trine("data", "import", source, "--out", tmp_path / "dataset", *options)
    assert found == code
    assert said in " ".join(stderr.split())
    assert "Traceback" not in stderr
    assert [file.name for file in tmp_path.iterdir()] == ["all.parquet"]


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.parquet", b"garbage"), ("a.csv", b""), ("a.csv.gz", b"garbage"), ("a.xlsx", b""), ("a.csv", b"\xff\xfe\x00")],
)
def test_files_that_cannot_be_read_exit_3(trine: Any, tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    code, _, stderr = trine("data", "import", tmp_path / name, "--out", tmp_path / "dataset")
    assert code == 3
    assert name in stderr
    assert not (tmp_path / "dataset").exists()


def test_no_rows_at_all_is_not_a_dataset(trine: Any, tmp_path: Path) -> None:
    for name in ("none.parquet", "none.csv"):
        source = write(handbook(0), tmp_path / name)
        code, _, stderr = trine("data", "import", source, "--out", tmp_path / "dataset")
        assert (code, (tmp_path / "dataset").exists()) == (3, False)
        assert "no row that can be used" in stderr


def test_a_truncated_archive_writes_nothing(trine: Any, tmp_path: Path) -> None:
    frame = handbook(5_000)
    whole = gzip.compress(csv_bytes(frame))
    (tmp_path / "cut.csv.gz").write_bytes(whole[: len(whole) // 2])
    assert trine("data", "import", tmp_path / "cut.csv.gz", "--out", tmp_path / "dataset")[0] == 3
    assert [file.name for file in tmp_path.iterdir()] == ["cut.csv.gz"]


def csv_bytes(frame: pd.DataFrame) -> bytes:
    sink = pa.BufferOutputStream()
    pacsv.write_csv(pa.Table.from_pandas(frame, preserve_index=False), sink)
    return bytes(sink.getvalue().to_pybytes())
