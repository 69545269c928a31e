"""A user's own interactions: recognised names, MovieLens' files, and rows that cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest
from feature_store.dataset import load

from models.importing.errors import BadRowsError, SourceError
from models.recommender.importer import InteractionOptions, import_interactions
from models.recommender.sources import INTERACTION_FILES

U_DATA = "196\t242\t3\t881250949\n186\t302\t3\t891717742\n196\t377\t1\t881250949\n"
RATINGS = "userId,movieId,rating,timestamp\n1,1,4.0,964982703\n1,3,0.5,964981247\n2,3,5.0,1445714835\n"


def _write(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


def test_movielens_100k_as_it_is(tmp_path: Path) -> None:
    file = _write(tmp_path, "u.data", U_DATA)
    description = import_interactions(file, tmp_path / "out", InteractionOptions())
    assert (description["interactions"], description["users"], description["items"]) == (3, 2, 3)
    assert description["kinds"] == {"rating": 3}
    rows = load(tmp_path / "out", INTERACTION_FILES).to_pylist()
    assert [(r["user_id"], r["item_id"], r["kind"], r["value"]) for r in rows if r["item_id"] != "377"] == [
        ("196", "242", "rating", 3.0),
        ("186", "302", "rating", 3.0),
    ]
    assert rows[0]["event_time"].isoformat() == "1997-12-04T15:55:49+00:00"
    assert sorted(path.name for path in (tmp_path / "out" / "interactions").iterdir()) == [
        "1997-12-04.parquet", "1998-04-04.parquet",
    ]  # fmt: skip
    ids = {row["interaction_id"] for row in rows}
    import_interactions(file, tmp_path / "again", InteractionOptions())
    assert ids == {row["interaction_id"] for row in load(tmp_path / "again", INTERACTION_FILES).to_pylist()}
    assert len(ids) == 3


def test_ratings_csv_as_it_is(tmp_path: Path) -> None:
    import_interactions(_write(tmp_path, "ratings.csv", RATINGS), tmp_path / "out", InteractionOptions())
    rows = load(tmp_path / "out", INTERACTION_FILES).to_pylist()
    assert [(row["user_id"], row["item_id"], row["value"]) for row in rows] == [
        ("1", "3", 0.5), ("1", "1", 4.0), ("2", "3", 5.0),
    ]  # fmt: skip


def test_own_names_kinds_and_ids(tmp_path: Path) -> None:
    text = "who;what;when;did;id\nann;x;2024-05-01T10:00:00Z;click;e1\nann;x;2024-05-01T10:00:00Z;buy;e2\n"
    file = _write(tmp_path, "log.csv", text)
    names = {"user_id": "who", "item_id": "what", "event_time": "when", "kind": "did", "interaction_id": "id"}
    import_interactions(file, tmp_path / "out", InteractionOptions(columns=names, delimiter=";"))
    rows = load(tmp_path / "out", INTERACTION_FILES).to_pylist()
    found = {(row["interaction_id"], row["kind"], row["value"]) for row in rows}
    assert found == {("e1", "click", 1.0), ("e2", "buy", 1.0)}


BAD = """user_id,item_id,event_time,rating
1,a,2024-05-01,4
,a,2024-05-01,4
1,a b,2024-05-01,4
1,b,1969-05-01,4
1,c,2024-05-01,good
1,d,2024-05-01,-1
1,a,2024-05-01,5
1,e,2024-05-01
"""


def test_bad_rows_are_counted_with_examples_and_nothing_is_written(tmp_path: Path) -> None:
    file = _write(tmp_path, "log.csv", BAD)
    with pytest.raises(BadRowsError) as stopped:
        import_interactions(file, tmp_path / "out", InteractionOptions())
    assert not (tmp_path / "out").exists()
    reasons = {(r["field"], r["reason"]): r["rows"] for r in stopped.value.bad_rows.to_json()["reasons"]}  # type: ignore[attr-defined]
    assert reasons == {
        ("user_id", "missing"): 1,
        ("item_id", "malformed"): 1,
        ("event_time", "out of range"): 1,
        ("value", "not a number"): 1,
        ("value", "out of range"): 1,
        ("row", "repeated"): 1,
        ("row", "3 cells"): 1,
    }
    description = import_interactions(file, tmp_path / "out", InteractionOptions(skip_bad_rows=True))
    assert (description["interactions"], description["bad_rows"]["rows"]) == (1, 7)
    assert load(tmp_path / "out", INTERACTION_FILES).num_rows == 1


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (
            "a,b\n1,2\n",
            InteractionOptions(),
            "no column user_id or userId or user .*--map user_id=COLUMN",
        ),
        ("user,item,when\n1,2,3\n", InteractionOptions(columns={"event_time": "when"}), None),
        ("user,item,timestamp\n", InteractionOptions(), "no row that can be used"),
    ],
)
def test_files_that_cannot_be_used_are_named(
    tmp_path: Path, text: str, options: InteractionOptions, message: str | None
) -> None:
    with pytest.raises((SourceError, BadRowsError), match=message):
        import_interactions(_write(tmp_path, "log.csv", text), tmp_path / "out", options)
    with pytest.raises(SourceError, match="no field is called colour"):
        InteractionOptions(columns={"colour": "x"})
