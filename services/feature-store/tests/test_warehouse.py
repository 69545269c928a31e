"""The warehouse's reader: both forms of files, ranges that overlap in any way, what counts once, what is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from feature_store import warehouse_names as names
from feature_store.ids import id64
from feature_store.source_files import DAY_US, TIME_TYPE, DatasetError, SourceFiles, day_name, times_us
from feature_store.warehouse import Warehouse
from feature_store.warehouse_names import Coverage
from feature_store.warehouse_rows import PLACE_FIELDS
from hypothesis import given, settings
from hypothesis import strategies as st

DAY0 = 17_600 * DAY_US
LOG = names.log_name("t.visits", "some-id")
SCHEMA = pa.schema({"visit_id": pa.string(), "seen_at": TIME_TYPE, "pages": pa.int64()})
VISITS = SourceFiles("visits", "visit_id", "seen_at", SCHEMA, required=True)
NOTES = SourceFiles("visits", "visit_id", "seen_at", SCHEMA, required=True, unique_id=False)
ARCHIVED = pa.schema([*SCHEMA, *PLACE_FIELDS])

Row = tuple[str, int, int, int, int]
"""id, time, pages, partition, offset"""


def table(rows: Sequence[Row], schema: pa.Schema = ARCHIVED) -> pa.Table:
    columns = list(zip(*rows, strict=True)) if rows else [()] * 5
    return pa.table([pa.array(list(c), f.type) for c, f in zip(columns, schema, strict=False)], schema=schema)


def archive(folder: Path, rows: Sequence[Row], coverage: Coverage, day: int = 0, log: str = LOG) -> Path:
    """What the archiver writes of `rows`: those of the day that the ranges cover."""
    inside = [
        row
        for row in rows
        if row[1] // DAY_US == DAY0 // DAY_US + day
        and any(first <= row[4] <= last for first, last in coverage.get(row[3], ()))
    ]
    file = folder / "visits" / day_name(DAY0 + day * DAY_US) / names.file_name(log, coverage)
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table(inside).replace_schema_metadata(names.footer_ranges(coverage)), file)
    return file


def day_file(folder: Path, rows: Sequence[Row], day: int = 0) -> Path:
    file = folder / "visits" / f"{day_name(DAY0 + day * DAY_US)}.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table(rows).select(SCHEMA.names), file)
    return file


def found(loaded: pa.Table) -> list[tuple[str, int, int]]:
    ids, pages = (loaded.column(n).to_pylist() for n in ("visit_id", "pages"))
    return list(zip(ids, times_us(loaded, "seen_at").tolist(), pages, strict=True))


SPANS = st.tuples(st.integers(0, 30), st.integers(0, 12)).map(lambda s: (s[0], s[0] + s[1]))
COVERAGES = st.dictionaries(st.integers(0, 2), st.lists(SPANS, min_size=1, max_size=3), min_size=1).map(
    lambda spans: names.union([spans])
)


def offsets(coverage: Coverage) -> set[tuple[int, int]]:
    return {(p, o) for p, spans in coverage.items() for a, b in spans for o in range(a, b + 1)}


@given(st.lists(COVERAGES, max_size=6))
def test_every_offset_counts_in_exactly_one_file(coverages: list[Coverage]) -> None:
    files: Mapping[str, tuple[str, Coverage]] = {f"f{i}": (LOG, c) for i, c in enumerate(coverages)}
    counted: list[tuple[int, int]] = []
    for name, part in names.resolve(files).items():
        own = files[name][1] if part is None else part
        assert offsets(own) <= offsets(files[name][1])
        assert names.size(own) == len(offsets(own))
        counted += offsets(own)
    assert len(counted) == len(set(counted))
    assert set(counted) == set().union(*map(offsets, coverages), set())


@given(st.lists(COVERAGES, max_size=6), st.randoms())
def test_what_is_superseded_may_go_in_any_order_and_nothing_is_lost(coverages: list[Coverage], random: object) -> None:
    files: dict[str, tuple[str, Coverage]] = {f"f{i}": (LOG, c) for i, c in enumerate(coverages)}
    everything = set().union(*(offsets(c) for _, c in files.values()), set())
    # All at once by one look: as by several that delete by what they saw a while ago.
    for name in names.superseded(files):
        del files[name]
    assert set().union(*(offsets(c) for _, c in files.values()), set()) == everything
    assert not names.superseded(files)


@given(COVERAGES)
def test_names_and_footers_say_what_is_in_a_file(coverage: Coverage) -> None:
    parsed = names.parsed(names.file_name(LOG, coverage).removesuffix(".parquet"))
    assert parsed is not None
    assert parsed.log == LOG
    assert (parsed.coverage or names.ranges_of(names.footer_ranges(coverage))) == coverage


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 9)), max_size=30),
    st.lists(COVERAGES, max_size=5),
)
def test_rows_of_overlapping_files_come_once_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, events: list[tuple[int, int, int]], coverages: list[Coverage]
) -> None:
    folder = tmp_path_factory.mktemp("warehouse")
    (folder / "visits").mkdir()
    log: dict[int, int] = {}
    rows: list[Row] = []
    for partition, day, at in events:
        offset = log[partition] = log.get(partition, -1) + 1
        rows.append((f"{partition}:{offset}", DAY0 + day * DAY_US + at, offset, partition, offset))
    for coverage in coverages:
        for day in range(3):
            archive(folder, rows, coverage, day)
    covered = set().union(*map(offsets, coverages), set())
    right = [(r[0], r[1], r[2]) for r in rows if (r[3], r[4]) in covered]
    right.sort(key=lambda r: (r[1], id64(r[0])))
    optional = SourceFiles("visits", "visit_id", "seen_at", SCHEMA, required=False)
    warehouse = Warehouse(folder)
    assert found(warehouse.load(optional)) == right
    assert found(warehouse.load(optional, DAY0 + 4, DAY0 + DAY_US + 4)) == [
        r for r in right if DAY0 + 4 <= r[1] < DAY0 + DAY_US + 4
    ]


def test_both_forms_together_and_each_event_once(tmp_path: Path) -> None:
    day_file(tmp_path, [("a", DAY0 + 1, 1, 0, 0), ("b", DAY0 + 5, 1, 0, 0)])
    rows = [
        ("b", DAY0 + 5, 1, 0, 0),  # the history has it already
        ("9", DAY0 + 3, 1, 1, 0),
        ("10", DAY0 + 3, 1, 0, 1),  # ties are in order of ids, numeric ones as numbers
        ("c", DAY0 + 7, 1, 0, 2),
        ("c", DAY0 + 7, 1, 0, 3),  # said twice
        ("c", DAY0 + 2, 9, 0, 4),  # the same id with other content: the first one counts
    ]
    archive(tmp_path, rows, {0: [(0, 4)], 1: [(0, 0)]})
    warehouse = Warehouse(tmp_path)
    first, tie1, tie2, b, c = found(warehouse.load(VISITS))
    assert [first[0], tie1[0], tie2[0], b[0], c] == ["a", "9", "10", "b", ("c", DAY0 + 7, 1)]
    # Where an id may be said of again, only what is equal in all columns is a repeat.
    assert [r[0] for r in found(warehouse.load(NOTES))] == ["a", "c", "9", "10", "b", "c"]
    assert warehouse.load(VISITS, columns=["pages"]).schema == pa.schema({"pages": pa.int64()})
    assert warehouse.load(VISITS, columns=["pages"]).num_rows == 5


def test_a_plan_for_readers_in_parallel(tmp_path: Path) -> None:
    rows: list[Row] = [(str(o), DAY0 + o, o, 0, o) for o in range(100)]
    archive(tmp_path, rows, {0: [(0, 59)]})
    archive(tmp_path, rows, {0: [(40, 99)]})
    archive(tmp_path, rows, {0: [(10, 20)]})
    day_file(tmp_path, [("x", DAY0 + DAY_US, 1, 0, 0)], day=1)
    warehouse = Warehouse(tmp_path)
    planned = warehouse.files(VISITS)
    assert [(f.rows, f.archived) for f in planned] == [(60, True), (60, True), (1, False)]
    read = [r for f in planned for r in found(warehouse.read(f, VISITS))]
    assert sorted(r[1] for r in read) == [DAY0 + o for o in range(100)] + [DAY0 + DAY_US]
    assert [f.rows for f in warehouse.files(VISITS, DAY0 + DAY_US)] == [1]
    assert warehouse.days(VISITS) == [DAY0, DAY0 + DAY_US]


def test_two_lives_of_a_topic_are_both_read(tmp_path: Path) -> None:
    archive(tmp_path, [("a", DAY0, 1, 0, 0)], {0: [(0, 0)]})
    archive(tmp_path, [("b", DAY0, 1, 0, 0)], {0: [(0, 0)]}, log=names.log_name("t.visits", "another-id"))
    warehouse = Warehouse(tmp_path)
    assert [r[0] for r in found(warehouse.load(VISITS))] == sorted(["a", "b"], key=id64)
    assert len(warehouse.archived(VISITS)) == 2


def test_days_that_are_missing(tmp_path: Path) -> None:
    for day in (0, 1, 4):
        day_file(tmp_path, [("a", DAY0 + day * DAY_US, 1, 0, 0)], day)
    warehouse = Warehouse(tmp_path)
    assert warehouse.missing_days(VISITS) == [DAY0 + 2 * DAY_US, DAY0 + 3 * DAY_US]
    assert warehouse.load(VISITS, every_day=False).num_rows == 3
    assert warehouse.load(VISITS, DAY0, DAY0 + 2 * DAY_US, every_day=True).num_rows == 2
    with pytest.raises(DatasetError, match="visits: no file for 2018-03-12, 2018-03-13; every day"):
        warehouse.load(VISITS, every_day=True)
    with pytest.raises(DatasetError, match="no file for 2018-03-15"):
        warehouse.load(VISITS, DAY0 + 4 * DAY_US, DAY0 + 6 * DAY_US, every_day=True)


def test_what_cannot_be_used_is_named(tmp_path: Path) -> None:
    rows: list[Row] = [(str(o), DAY0 + o, o, 0, o) for o in range(4)]
    good = archive(tmp_path, rows, {0: [(0, 3)]})
    warehouse = Warehouse(tmp_path)
    whole = good.read_bytes()
    good.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DatasetError, match=rf"{good.name}: not a readable Parquet file"):
        warehouse.load(VISITS)
    good.write_bytes(whole[:50] + bytes(len(whole) - 450) + whole[-400:])
    with pytest.raises(DatasetError, match=rf"{good.name}: not a readable Parquet file"):
        warehouse.load(VISITS)
    good.write_bytes(whole)
    for column, wrong, said in (
        ("pages", pa.array([1.5] * 4), "column pages is double, must be int64"),
        ("_offset", pa.array([1] * 4, pa.int32()), "column _offset is int32, must be int64"),
        ("pages", pa.array([None] * 4, pa.int64()), "column pages has 4 missing values"),
        ("seen_at", pa.array([DAY0 - 1] * 4, TIME_TYPE), "column seen_at has times outside the UTC day"),
    ):
        at = ARCHIVED.get_field_index(column)
        pq.write_table(table(rows).set_column(at, column, wrong), good)
        with pytest.raises(DatasetError, match=rf"{good.name}: {said}"):
            warehouse.load(VISITS)
    pq.write_table(table(rows).drop_columns(["pages"]), good)
    later = day_file(tmp_path, [("x", DAY0 + DAY_US, 1, 0, 0)], day=1)
    later.write_bytes(b"PAR1 nothing PAR1")
    # Schemas of all files first.
    with pytest.raises(DatasetError, match=r"not a readable|column pages \(int64\) is missing"):
        warehouse.files(VISITS)
    later.unlink()
    with pytest.raises(DatasetError, match=r"column pages \(int64\) is missing"):
        warehouse.files(VISITS)
    misnamed = good.rename(good.with_name("visits.parquet"))
    with pytest.raises(DatasetError, match="not a name of the archive's"):
        warehouse.load(VISITS)
    misnamed.unlink()
    with pytest.raises(DatasetError, match="visits has no column page; its columns are visit_id"):
        warehouse.load(VISITS, columns=["page"])


def test_files_merged_away_between_plan_and_read(tmp_path: Path) -> None:
    rows: list[Row] = [(str(o), DAY0 + o, o, 0, o) for o in range(100)]
    small = [archive(tmp_path, rows, {0: [(a, a + 49)]}) for a in (0, 50)]
    warehouse = Warehouse(tmp_path)
    real = warehouse.read
    merged: list[Path] = []

    def read(*args: object, **more: object) -> pa.Table:
        if not merged:
            merged.append(archive(tmp_path, rows, {0: [(0, 99)]}))
            for file in small:
                file.unlink()
        return real(*args, **more)  # type: ignore[arg-type]  # as given

    warehouse.read = read  # type: ignore[method-assign]
    assert warehouse.load(VISITS).num_rows == 100
    merged[0].unlink()


def test_another_file_system(tmp_path: Path) -> None:
    rows: list[Row] = [(str(o), DAY0 + o, o, 0, o) for o in range(10)]
    archive(tmp_path / "deep" / "wh", rows, {0: [(0, 9)]})
    below = pafs.SubTreeFileSystem(str(tmp_path / "deep"), pafs.LocalFileSystem())
    assert Warehouse("wh", below).load(VISITS).num_rows == 10
    assert Warehouse(f"file://{tmp_path}/deep/wh").load(VISITS).num_rows == 10
    with pytest.raises(DatasetError, match="warehouse nosuch://x"):
        Warehouse("nosuch://x")
