"""What a job's declaration refuses, and what it says of its rows."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pyarrow as pa
import pytest
from batch_scorer.errors import JobError
from batch_scorer.job import Checks, Output
from tests.shop_job import JOB


def test_schema_is_the_key_and_the_outputs() -> None:
    job = replace(JOB, outputs=(Output("score"), Output("embedding", "vector", 8), Output("items", "ranking")))
    assert job.schema.names == ["key", "score", "embedding", "items"]
    assert job.schema.field("embedding").type == pa.list_(pa.float32(), 8)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"name": "Shop"}, "'Shop'"),
        ({"outputs": ()}, "outputs"),
        ({"outputs": (Output("a"), Output("a"))}, "outputs"),
        ({"needs": ()}, "needs"),
        ({"checks": Checks(drift=("price",))}, "price"),
        ({"checks": Checks(coverage=1.5)}, "1.5"),
    ],
)
def test_a_declaration_that_cannot_run_is_refused_by_name(change: dict[str, object], named: str) -> None:
    with pytest.raises(JobError, match=named):
        replace(JOB, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "output", [("key", "float32", 0), ("Score", "float32", 0), ("v", "vector", 0), ("x", "int", 0)]
)
def test_outputs_that_nothing_can_hold_are_refused(output: tuple[str, str, int]) -> None:
    with pytest.raises(JobError, match=output[0]):
        Output(*output)  # type: ignore[arg-type]


def test_declaring_and_reading_need_neither_spark_nor_torch() -> None:
    code = "import batch_scorer.job, sys; print(sorted({'pyspark', 'torch'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
