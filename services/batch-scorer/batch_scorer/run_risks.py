"""What a run said of some keys, read from its history in a warehouse: for replaying decisions that it took part in."""

from __future__ import annotations

from collections.abc import Collection

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from feature_store.warehouse import Warehouse
from feature_store.warehouse_store import WarehouseStore

from batch_scorer.errors import StorageError
from batch_scorer.history import Folder
from batch_scorer.job import KEY


class RunRisks:
    """Runs below a warehouse; each is read once, as its key and one number."""

    def __init__(self, store: WarehouseStore) -> None:
        self._store = store
        self._tables: dict[tuple[str, str], pa.Table | None] = {}

    @classmethod
    def below(cls, warehouse: str) -> RunRisks:
        """Raises DatasetError for a URI that nobody knows."""
        return cls(Warehouse(warehouse).store)

    def of(self, run: str, output: str, keys: Collection[str]) -> dict[str, float] | None:
        """The run's float32 `output` of those of `keys` that it has; None where the warehouse does not hold the run
        whole. Raises StorageError where it cannot be read."""
        name = (run, output)
        if name not in self._tables:
            self._tables[name] = self._read(run, output)
        table = self._tables[name]
        if table is None:
            return None
        found = table.filter(pc.is_in(table.column(KEY), value_set=pa.array(sorted(set(keys)), pa.string())))
        return dict(zip(found.column(KEY).to_pylist(), found.column(output).to_pylist(), strict=True))

    def _read(self, run: str, output: str) -> pa.Table | None:
        folder = Folder(self._store, run)
        manifest = folder.manifest()
        if manifest is None:
            return None
        parts = []
        for part in manifest.parts:
            try:
                with self._store.open(folder.file(part.file)) as file:
                    parts.append(pq.read_table(file, columns=[KEY, output]))
            except FileNotFoundError:
                return None
            except (OSError, pa.ArrowException) as error:
                shown = self._store.shown(folder.file(part.file))
                raise StorageError(f"{shown}: cannot be read: {error}") from error
        table = pa.concat_tables(parts) if parts else None
        return table if table is not None and table.num_rows == manifest.rows else None
