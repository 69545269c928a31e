"""The dataset folder: what the loader accepts, what it opens, what counts as true; writers leave all or nothing."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feature_store.dataset import (
    DAY_US,
    TIME_TYPE,
    UNFINISHED,
    DatasetError,
    day_name,
    load_sources,
    times_us,
)
from feature_store.dataset_writer import DatasetWriter, description_of
from feature_store.day_sort import DaySort
from feature_store.definitions import (
    Entity,
    FeaturePlan,
    FeatureView,
    LabelSource,
    Mean,
    Share,
    Source,
    days,
)
from feature_store.ids import id64, id64_array
from hypothesis import given
from hypothesis import strategies as st

from models.fraud.sources import FRAUD_REPORT_FILES, TRANSACTION_FILES, load_fraud_reports, load_transactions

FIRST_DAY = 17_622
DAY0 = FIRST_DAY * DAY_US


def transactions(times: list[int], ids: list[str] | None = None) -> pa.Table:
    count = len(times)
    return pa.table(
        {
            "transaction_id": ids or [str(i) for i in range(count)],
            "event_time": pa.array(times, TIME_TYPE),
            "customer_id": ["c"] * count,
            "terminal_id": ["t"] * count,
            "amount": pa.array([100] * count, pa.int64()),
            "currency": ["EUR"] * count,
        },
        schema=TRANSACTION_FILES.schema,
    )


def reports(rows: list[tuple[str, int, bool]]) -> pa.Table:
    return pa.table(
        {
            "transaction_id": [row[0] for row in rows],
            "reported_at": pa.array([row[1] for row in rows], TIME_TYPE),
            "fraud": [row[2] for row in rows],
            "scenario": pa.array([0] * len(rows), pa.int32()),
        },
        schema=FRAUD_REPORT_FILES.schema,
    )


def write(folder: Path, day: int, table: pa.Table) -> Path:
    file = folder / "transactions" / f"{day_name(day * DAY_US)}.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file)
    return file


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    with DatasetWriter(tmp_path / "dataset") as writer:
        for day in range(3):
            start = DAY0 + day * DAY_US
            writer.write_day(TRANSACTION_FILES, start, transactions([start, start + 5, start + DAY_US - 1]))
        writer.write_day(FRAUD_REPORT_FILES, DAY0, reports([("0", DAY0 + 7, True), ("1", DAY0 + 9, True)]))
        writer.finish({"made_by": "test"})
    return tmp_path / "dataset"


@pytest.mark.parametrize(
    ("from_us", "to_us"),
    [(None, None), (DAY0 + 5, None), (None, DAY0 + DAY_US), (DAY0 + 6, DAY0 + DAY_US + 6), (DAY0 + 6, DAY0 + 6)],
)
def test_a_range_has_its_start_and_not_its_end(dataset: Path, from_us: int | None, to_us: int | None) -> None:
    everything = [DAY0 + day * DAY_US + t for day in range(3) for t in (0, 5, DAY_US - 1)]
    wanted = [t for t in everything if (from_us is None or t >= from_us) and (to_us is None or t < to_us)]
    loaded = load_transactions(dataset, from_us, to_us)
    assert times_us(loaded, "event_time").tolist() == wanted
    assert loaded.schema == TRANSACTION_FILES.schema


def test_reports_known_at_a_time_include_those_of_that_microsecond(dataset: Path) -> None:
    assert load_fraud_reports(dataset, DAY0 + 6).num_rows == 0
    assert load_fraud_reports(dataset, DAY0 + 7).num_rows == 1
    assert load_fraud_reports(dataset).num_rows == 2


def test_files_outside_the_range_are_not_opened(dataset: Path) -> None:
    (dataset / "transactions" / f"{day_name(DAY0 + 2 * DAY_US)}.parquet").write_bytes(b"garbage")
    assert load_transactions(dataset, None, DAY0 + 2 * DAY_US).num_rows == 6
    with pytest.raises(DatasetError, match="not a readable Parquet file"):
        load_transactions(dataset)


def test_no_reports_is_a_dataset_and_no_transactions_is_none(tmp_path: Path) -> None:
    write(tmp_path, FIRST_DAY, transactions([DAY0]))
    assert load_fraud_reports(tmp_path).num_rows == 0
    with pytest.raises(DatasetError, match="not a dataset folder"):
        load_transactions(tmp_path / "elsewhere")
    with pytest.raises(DatasetError, match="not a dataset folder"):
        load_fraud_reports(tmp_path / "elsewhere")


def test_a_wrong_type_names_column_found_and_right(tmp_path: Path) -> None:
    table = transactions([DAY0])
    write(tmp_path, FIRST_DAY, table.set_column(4, "amount", pa.array([1.5])))
    with pytest.raises(DatasetError, match=r"column amount is double, must be int64"):
        load_transactions(tmp_path)
    write(tmp_path, FIRST_DAY, table.set_column(1, "event_time", pa.array([DAY0 // 1000], pa.timestamp("ms"))))
    with pytest.raises(DatasetError, match=r"column event_time is timestamp\[ms\], must be timestamp\[us, tz=UTC\]"):
        load_transactions(tmp_path)


def test_a_missing_column_or_value_is_named(tmp_path: Path) -> None:
    table = transactions([DAY0])
    write(tmp_path, FIRST_DAY, table.drop_columns(["terminal_id"]))
    with pytest.raises(DatasetError, match=r"column terminal_id \(string\) is missing"):
        load_transactions(tmp_path)
    write(tmp_path, FIRST_DAY, table.set_column(2, "customer_id", pa.array([None], pa.string())))
    with pytest.raises(DatasetError, match="column customer_id has 1 missing values"):
        load_transactions(tmp_path)


def test_times_outside_the_day_or_out_of_order_are_refused(tmp_path: Path) -> None:
    write(tmp_path, FIRST_DAY, transactions([DAY0, DAY0 + DAY_US]))
    with pytest.raises(DatasetError, match="outside the UTC day"):
        load_transactions(tmp_path)
    write(tmp_path, FIRST_DAY, transactions([DAY0 + 2, DAY0 + 1]))
    with pytest.raises(DatasetError, match="not sorted by event_time"):
        load_transactions(tmp_path)


def test_a_file_that_is_not_named_by_its_day_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path, FIRST_DAY, transactions([DAY0]))
    file.rename(file.with_name("april.parquet"))
    with pytest.raises(DatasetError, match="a file's name is its UTC day"):
        load_transactions(tmp_path)


def test_a_plan_reads_what_it_declares_and_no_more(tmp_path: Path) -> None:
    cab, rider = Entity("cab", "cab_id"), Entity("rider", "rider_id")
    rides = Source("taxi_rides", "x.Ride", "x.rides", "cab_id", "ride_id", "begun_us", ("fare",))
    refunds = LabelSource(
        "refunds", "x.Refund", "x.refunds", "ride_id", "ride_id", "begun_us", "refunded_us", "wrong", rides
    )
    plan = FeaturePlan("rides", rides, (), (
        FeatureView("cab", cab, rides, (Mean("fare"),), days(1)),
        FeatureView("rider", rider, rides, (Share(refunds, "refund"),), days(1), delay=timedelta(days=1)),
    ))  # fmt: skip
    for folder, table in (
        ("taxi-rides", {"ride_id": ["1"], "cab_id": ["c"], "rider_id": ["r"], "fare": [7], "begun": [DAY0], "x": [1]}),
        ("refunds", {"ride_id": ["1", "1"], "refunded": [DAY0 + 1, DAY0 + 2], "wrong": [True, False]}),
    ):
        (tmp_path / folder).mkdir()
        time = "begun" if "begun" in table else "refunded"
        columns = {name: pa.array(v, TIME_TYPE) if name == time else pa.array(v) for name, v in table.items()}
        pq.write_table(pa.table(columns), tmp_path / folder / f"{day_name(DAY0)}.parquet")
    events, labels = load_sources(tmp_path, plan, None, None, known_before_us=DAY0 + 2)
    assert events.column_names == ["ride_id", "cab_id", "rider_id", "begun", "fare"]
    assert labels["refunds"].select(["ride_id", "wrong"]).to_pylist() == [{"ride_id": "1", "wrong": True}]


def test_a_writer_that_does_not_finish_leaves_nothing(tmp_path: Path) -> None:
    def stops_half_way() -> None:
        with DatasetWriter(tmp_path / "dataset") as writer:
            writer.write_day(TRANSACTION_FILES, DAY0, transactions([DAY0]))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stops_half_way()
    assert list(tmp_path.iterdir()) == []


def test_what_is_being_written_does_not_load_and_another_writer_leaves_it_alone(tmp_path: Path) -> None:
    with DatasetWriter(tmp_path / "dataset") as writer:
        writer.write_day(TRANSACTION_FILES, DAY0, transactions([DAY0]))
        with pytest.raises(DatasetError, match="unfinished"):
            load_transactions(writer.folder)
        with DatasetWriter(tmp_path / "dataset") as other:
            other.write_day(TRANSACTION_FILES, DAY0, transactions([DAY0, DAY0 + 1]))
            other.finish({})
        with pytest.raises(DatasetError, match="is a dataset already"):
            writer.finish({})
    assert load_transactions(tmp_path / "dataset").num_rows == 2
    assert [folder.name for folder in tmp_path.iterdir()] == ["dataset"]


def test_leftovers_of_a_killed_writer_are_cleared(tmp_path: Path) -> None:
    leftover = tmp_path / ".dataset.x1.partial"
    leftover.mkdir()
    (leftover / UNFINISHED).touch()
    with DatasetWriter(tmp_path / "dataset") as writer:
        writer.write_day(TRANSACTION_FILES, DAY0, transactions([DAY0]))
        writer.finish({})
    assert [folder.name for folder in tmp_path.iterdir()] == ["dataset"]


def test_overwrite_replaces_a_dataset_and_nothing_else(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="--overwrite"):
        DatasetWriter(dataset)
    with DatasetWriter(dataset, overwrite=True) as writer:
        writer.write_day(TRANSACTION_FILES, DAY0, transactions([DAY0]))
        assert writer.finish({"made_by": "again"}) == {"format": 1, "made_by": "again"}
    assert load_transactions(dataset).num_rows == 1
    assert load_fraud_reports(dataset).num_rows == 0
    assert description_of(dataset) == {"format": 1, "made_by": "again"}
    other = tmp_path / "letters"
    other.mkdir()
    (other / "mother.txt").write_text("dear")
    with pytest.raises(DatasetError, match="not a dataset"):
        DatasetWriter(other, overwrite=True)
    with pytest.raises(DatasetError, match="is a file"):
        DatasetWriter(other / "mother.txt", overwrite=True)


def test_a_garbled_description_is_an_error(dataset: Path) -> None:
    (dataset / "dataset.json").write_text(json.dumps({})[:1])
    with pytest.raises(DatasetError, match="not readable JSON"):
        description_of(dataset)
    assert description_of(dataset / "nowhere") is None


@given(st.lists(st.tuples(st.integers(0, 3 * DAY_US), st.text("ab19", min_size=1, max_size=3)), unique=True))
def test_days_come_back_sorted_whatever_fits_in_memory(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, str]]
) -> None:
    times, ids = [DAY0 + row[0] for row in rows], [row[1] for row in rows]
    sorter = DaySort(TRANSACTION_FILES, tmp_path_factory.mktemp("sort") / "scratch", rows_in_memory=4)
    for begin in range(0, len(rows), 3):
        end = begin + 3
        ordinal = np.arange(begin, min(end, len(rows)))
        sorter.add(transactions(times[begin:end], ids[begin:end]), id64_array(ids[begin:end]), ordinal)
    left_out = np.arange(0, len(rows), 5)
    kept = [i for i in range(len(rows)) if i % 5]
    found = [
        (day, time, id_)
        for day, table in sorter.days(left_out)
        for time, id_ in zip(
            times_us(table, "event_time").tolist(), table.column("transaction_id").to_pylist(), strict=True
        )
    ]
    wanted = sorted(((times[i], id64(ids[i])), ids[i]) for i in kept)
    assert found == [(time // DAY_US * DAY_US, time, id_) for (time, _), id_ in wanted]
    assert sorter.ids(left_out) == {i: ids[i] for i in left_out.tolist()}
