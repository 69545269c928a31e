"""Writes dataset folders so that a reader sees all of one or nothing.

Files go to a hidden folder beside the target, which gets its name when everything is in it. A run that is killed leaves
that hidden folder with its mark inside: `dataset` refuses to load it, and the next run for the same target clears it.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from feature_store.dataset import DESCRIPTION, UNFINISHED, DatasetError, SourceFiles, day_name


def description_of(path: str | Path) -> dict[str, Any] | None:
    """What dataset.json says about how a dataset was made; None where there is no dataset.json."""
    try:
        described = json.loads((Path(path) / DESCRIPTION).read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise DatasetError(f"{Path(path) / DESCRIPTION}: not readable JSON: {error}") from error
    if not isinstance(described, dict):
        raise DatasetError(f"{Path(path) / DESCRIPTION}: must be a JSON object")
    return described


class DatasetWriter:
    """Use as a context manager: `write_day` any number of times, then `finish` once; leaving without it writes nothing.

    `overwrite`: replace a dataset that is already at `target`. Raises DatasetError where something is in the way.
    """

    def __init__(self, target: str | Path, overwrite: bool = False) -> None:
        self.target = Path(target).absolute()
        self._overwrite = overwrite
        self._mark: IO[bytes] | None = None
        self._refuse_what_is_in_the_way()

    def __enter__(self) -> DatasetWriter:
        self.target.parent.mkdir(parents=True, exist_ok=True)
        self._clear_leftovers()
        self.folder = Path(tempfile.mkdtemp(prefix=f".{self.target.name}.", suffix=".partial", dir=self.target.parent))
        # mkdtemp makes it private; the dataset is as readable as any new folder.
        self.folder.chmod(self.target.parent.stat().st_mode & 0o777)
        self._mark = (self.folder / UNFINISHED).open("wb")
        # Held while this process lives: others can tell a running writer from a killed one.
        fcntl.flock(self._mark, fcntl.LOCK_EX)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._mark is not None:
            self._mark.close()
        if self.folder.exists():
            shutil.rmtree(self.folder)

    def write_day(self, source: SourceFiles, day_us: int, table: pa.Table) -> None:
        """One day's file. `table` has the source's columns and is in (time, id) order, all of it inside the day."""
        folder = self.folder / source.folder
        folder.mkdir(exist_ok=True)
        repeated: Any = [f.name for f in source.schema if f.name != source.id_column and f.type == pa.string()]
        pq.write_table(
            table.select(source.schema.names).cast(source.schema),
            folder / f"{day_name(day_us)}.parquet",
            compression="zstd",
            # An id occurs once: a dictionary of ids would only add to the file. Any: the stubs know only bool.
            use_dictionary=repeated,
        )

    def finish(self, description: Mapping[str, object]) -> dict[str, Any]:
        """Writes dataset.json, gives the folder its name, and returns what dataset.json says."""
        text = json.dumps({"format": 1, **description}, indent=2, allow_nan=False) + "\n"
        (self.folder / DESCRIPTION).write_text(text)
        self._refuse_what_is_in_the_way()
        replaced = self.folder.with_suffix(".replaced")
        if self.target.exists():
            self.target.rename(replaced)
        (self.folder / UNFINISHED).unlink()
        self.folder.rename(self.target)
        if replaced.exists():
            shutil.rmtree(replaced)
        return dict(json.loads(text))

    def _refuse_what_is_in_the_way(self) -> None:
        if not self.target.exists():
            return
        if not self.target.is_dir():
            raise DatasetError(f"{self.target} is a file; a dataset is a folder")
        if description_of(self.target) is None and any(self.target.iterdir()):
            raise DatasetError(f"{self.target} holds something that is not a dataset; name a new folder")
        if description_of(self.target) is not None and not self._overwrite:
            raise DatasetError(f"{self.target} is a dataset already; --overwrite replaces it")

    def _clear_leftovers(self) -> None:
        for folder in self.target.parent.glob(f".{self.target.name}.*.partial"):
            try:
                with (folder / UNFINISHED).open("rb") as mark:
                    fcntl.flock(mark, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder)
            except OSError:
                # Another run is writing it, or is about to mark it.
                continue
