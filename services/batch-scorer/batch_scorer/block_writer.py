"""What executors do to publish: a part's rows go from Parquet into Redis as blocks, many in a pipeline.

A block is one value that is set whole, so a task that is tried again, or runs twice, changes nothing. Until the run is
counted every block expires. Between pipelines the writer asks for the pace that the driver sets (`pace`).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import redis
from feature_store.warehouse_store import WarehouseStore
from redis.exceptions import ConnectionError as RedisAway
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisLate
from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_exponential

from batch_scorer.blocks import encode
from batch_scorer.errors import StorageError
from batch_scorer.history import BLOCK
from batch_scorer.runs import block_key, pace_key

_CHUNK_BYTES = 1 << 18
_READ_ROWS = 1 << 16


#: As Spark and as Arrow know `Written`.
WRITTEN_COLUMNS = "rows long, blocks long, bytes long, paused_s double"
_WRITTEN_SCHEMA = pa.schema({"rows": pa.int64(), "blocks": pa.int64(), "bytes": pa.int64(), "paused_s": pa.float64()})


@dataclass(frozen=True, slots=True)
class Written:
    """What one part became."""

    rows: int
    blocks: int
    bytes: int
    paused_s: float


@dataclass(frozen=True, slots=True)
class BlockWriter:
    """Writes `parts` (names of files in `folder`) under the run's name. `expire_s`: until somebody keeps them."""

    redis_url: str
    warehouse: str
    folder: str
    parts: tuple[str, ...]
    run: str
    expire_s: int
    patience_s: float

    def __call__(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Takes indices of parts, gives what became of each.

        Raises StorageError where Redis refuses a write or is away for longer than the patience.
        """
        store = WarehouseStore(self.warehouse)
        with redis.Redis.from_url(self.redis_url, socket_timeout=10, socket_connect_timeout=5) as client:
            for batch in batches:
                for index in batch.column(0).to_pylist():
                    written = self._write(client, store, f"{self.folder}/{self.parts[index]}")
                    yield pa.RecordBatch.from_pylist([asdict(written)], schema=_WRITTEN_SCHEMA)

    def _write(self, client: redis.Redis, store: WarehouseStore, path: str) -> Written:
        rows = blocks = size = waiting = 0
        paused_s = 0.0
        chunk: list[tuple[str, bytes]] = []
        for block, content in _blocks(store, path):
            value = encode(content)
            chunk.append((block_key(self.run, block), value))
            rows, blocks, size, waiting = rows + content.num_rows, blocks + 1, size + len(value), waiting + len(value)
            if waiting >= _CHUNK_BYTES:
                paused_s += self._send(client, chunk)
                chunk, waiting = [], 0
        paused_s += self._send(client, chunk)
        return Written(rows, blocks, size, paused_s)

    def _send(self, client: redis.Redis, chunk: list[tuple[str, bytes]]) -> float:
        """Set a pipeline of blocks, then pause as told; returns the seconds of the pause."""
        away = retry_if_exception_type((RedisAway, RedisLate))
        wait = wait_exponential(multiplier=0.05, max=1.0)
        try:
            for attempt in Retrying(retry=away, wait=wait, stop=stop_after_delay(self.patience_s), reraise=True):
                with attempt:
                    pipe = client.pipeline(transaction=False)
                    for name, value in chunk:
                        pipe.set(name, value, ex=self.expire_s)
                    pipe.get(pace_key(self.run))
                    # Raised from here: the client's own words would have the block in them.
                    answers = pipe.execute(raise_on_error=False)
                    if refused := next((answer for answer in answers if isinstance(answer, ResponseError)), None):
                        raise refused
                    pause_s = int(answers[-1] or 0) / 1e3
        except (RedisAway, RedisLate, ResponseError) as error:
            raise StorageError(f"Redis did not take rows of {self.run}: {error}") from error
        if pause_s:
            time.sleep(pause_s)
        return pause_s


def _blocks(store: WarehouseStore, path: str) -> Iterator[tuple[int, pa.RecordBatch]]:
    """(number, rows) of every block of a part, in order; no more than one batch of the file is held."""
    with store.open(path) as file, pq.ParquetFile(file) as parquet:
        carried: pa.Table | None = None
        for batch in parquet.iter_batches(_READ_ROWS):
            table = pa.Table.from_batches([batch])
            if carried is not None:
                table = pa.concat_tables([carried, table])
            rows = table.combine_chunks().to_batches()[0]
            numbers = rows.column(BLOCK).to_numpy()
            starts = np.concatenate([[0], np.flatnonzero(numbers[1:] != numbers[:-1]) + 1]).tolist()
            content = rows.drop_columns([BLOCK])
            # The last block may go on in the next batch.
            for start, end in itertools.pairwise(starts):
                yield int(numbers[start]), content.slice(start, end - start)
            carried = pa.Table.from_batches([rows.slice(starts[-1])])
        if carried is not None:
            rows = carried.combine_chunks().to_batches()[0]
            yield int(rows.column(BLOCK)[0].as_py()), rows.drop_columns([BLOCK])
