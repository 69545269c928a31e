"""A warehouse in a real object store; see trine_cli.local.object_store for how to name one."""

from __future__ import annotations

import uuid
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feature_store.source_files import DatasetError
from feature_store.warehouse import Warehouse
from feature_store.warehouse_store import WarehouseStore
from trine_cli.local.object_store import OBJECT_STORE, below

from models.fraud.sources import TRANSACTION_FILES

pytestmark = pytest.mark.skipif(not OBJECT_STORE, reason="TRINE_TEST_OBJECT_STORE names no object store")
OPTIONAL = replace(TRANSACTION_FILES, required=False)


@pytest.fixture
def uri() -> str:
    return below(OBJECT_STORE, uuid.uuid4().hex)


def test_what_is_written_is_listed_read_and_deleted(uri: str) -> None:
    store, table = WarehouseStore(uri), pa.table({"n": list(range(1_000)), "text": ["x"] * 1_000})
    size = store.write_table("transactions/2024-05-31/part.parquet", table)
    large = b"x" * 20_000_000  # several parts of an upload
    store.put("large", pa.py_buffer(large))
    store.put_empty("transactions/_empty/mark")
    assert {f.path: f.size_bytes for f in store.files("")} == {
        "transactions/2024-05-31/part.parquet": size, "large": len(large), "transactions/_empty/mark": 0,
    }  # fmt: skip
    assert pq.read_table(store.open("transactions/2024-05-31/part.parquet")).equals(table)
    assert store.open("large").read() == large
    assert store.exists("transactions")
    store.delete("large")
    store.delete("large")
    store.delete_folder("transactions")
    store.delete_folder("transactions")
    assert store.files("") == []


def test_an_empty_prefix_is_an_empty_warehouse(uri: str) -> None:
    """As an empty folder is: a store's prefix is not there before something is in it."""
    assert Warehouse(uri).load(OPTIONAL).num_rows == 0
    with pytest.raises(DatasetError, match="has no folder transactions/"):
        Warehouse(uri).load(TRANSACTION_FILES)


def test_a_bucket_that_is_not_there(uri: str) -> None:
    scheme, _, rest = uri.partition("://")
    missing = f"{scheme}://no-{uuid.uuid4().hex}-{rest}"
    with pytest.raises(DatasetError, match=r"no-\w+-.* is not a dataset folder or warehouse"):
        Warehouse(missing).load(OPTIONAL)
    with pytest.raises(OSError, match=r"(?i)bucket"):
        WarehouseStore(missing).put("x", pa.py_buffer(b"x"))
