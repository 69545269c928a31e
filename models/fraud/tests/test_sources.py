"""The dataset's files have what the plan reads of them, and the truth is what was reported last."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
from feature_store.dataset import TIME_TYPE, event_files, label_files
from hypothesis import given
from hypothesis import strategies as st

from models.fraud.features import FRAUD_REPORTS, PLAN
from models.fraud.sources import FRAUD_REPORT_FILES, TRANSACTION_FILES, truth


def test_the_files_have_every_column_that_the_plan_reads() -> None:
    pairs = ((TRANSACTION_FILES, event_files(PLAN)), (FRAUD_REPORT_FILES, label_files(FRAUD_REPORTS)))
    for written, read in pairs:
        columns = pa.schema([written.schema.field(name) for name in read.schema.names])
        assert replace(written, schema=columns) == read


@given(
    st.lists(
        st.tuples(st.sampled_from(["0", "1", "2", "elsewhere"]), st.integers(0, 5), st.booleans()),
        max_size=12,
    ),
    st.none() | st.integers(0, 5),
)
def test_truth_is_the_latest_report_known(rows: list[tuple[str, int, bool]], known_at: int | None) -> None:
    transactions = pa.table({"transaction_id": ["0", "1", "2"]})
    wanted = []
    for name in ("0", "1", "2"):
        said = [(at, fraud) for id_, at, fraud in rows if id_ == name and (known_at is None or at <= known_at)]
        # The latest; of two at once the one that says fraud.
        wanted.append(max(said)[1] if said else False)
    reports = pa.table(
        {
            "transaction_id": pa.array([id_ for id_, _, _ in rows], pa.string()),
            "reported_at": pa.array([at for _, at, _ in rows], TIME_TYPE),
            "fraud": pa.array([fraud for _, _, fraud in rows], pa.bool_()),
        }
    )
    assert truth(transactions, reports, known_at).tolist() == wanted
