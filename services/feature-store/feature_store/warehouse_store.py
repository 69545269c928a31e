"""A warehouse's folder wherever it is: this machine or an object store, by pyarrow's file systems.

Written files become visible whole: on a file system under a hidden name that is then renamed, on an object store by
nature, where an upload that did not end leaves nothing.
"""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

_OBJECT_STORES = ("s3", "gcs", "abfs")


@dataclass(frozen=True, slots=True)
class StoredFile:
    """`path` below the warehouse, `/` between parts; `modified_s`: seconds since the epoch, UTC."""

    path: str
    size_bytes: int
    modified_s: float

    @property
    def name(self) -> str:
        return self.path.rsplit("/", 1)[-1]


class WarehouseStore:
    """Lists, reads, writes and deletes below `uri`: a folder, or what pyarrow.fs.FileSystem.from_uri takes.

    `filesystem`: use this one, with `uri` as a path on it. Raises ValueError for a URI that pyarrow does not know.
    """

    def __init__(self, uri: str | Path, filesystem: pafs.FileSystem | None = None) -> None:
        self.uri = str(uri)
        if filesystem is not None:
            self._fs, self._root = filesystem, self.uri
        elif "://" in self.uri:
            try:
                self._fs, self._root = pafs.FileSystem.from_uri(self.uri)
            except pa.ArrowException as error:
                raise ValueError(f"warehouse {self.uri}: {error}") from error
        else:
            self._fs, self._root = pafs.LocalFileSystem(), str(Path(self.uri).absolute())
        self._root = self._root.rstrip("/")

    def shown(self, path: str) -> str:
        """A path as errors name it."""
        return f"{self.uri.rstrip('/').split('?')[0]}/{path}"

    @property
    def local(self) -> bool:
        """Whether it is a folder of this machine, or one mounted like it."""
        return isinstance(self._fs, pafs.LocalFileSystem)

    def uri_of(self, path: str) -> str:
        """A file's address for other readers of Parquet; on this machine its absolute path."""
        if isinstance(self._fs, pafs.LocalFileSystem):
            return f"{self._root}/{path}"
        return f"{self._fs.type_name}://{self._root}/{path}"

    def exists(self, path: str) -> bool:
        """A file or folder; of an object store, whose prefixes are only what begins with them, "" is the bucket."""
        if not path and self._fs.type_name in _OBJECT_STORES:
            return bool(self._fs.get_file_info(self._root.split("/", 1)[0]).type != pafs.FileType.NotFound)
        return bool(self._fs.get_file_info(self._path(path)).type != pafs.FileType.NotFound)

    def files(self, folder: str) -> list[StoredFile]:
        """Every file below `folder`, however deep; none where it does not exist. Hidden files are left out."""
        found = self._fs.get_file_info(pafs.FileSelector(self._path(folder), allow_not_found=True, recursive=True))
        cut = len(self._root) + 1
        return [
            StoredFile(info.path[cut:], info.size or 0, (info.mtime_ns or 0) / 1e9)
            for info in found
            if info.type == pafs.FileType.File and not info.base_name.startswith(".")
        ]

    def folders(self, folder: str) -> list[str]:
        """Every folder below `folder`, however deep, empty ones too where the store has such; none where it is not."""
        found = self._fs.get_file_info(pafs.FileSelector(self._path(folder), allow_not_found=True, recursive=True))
        cut = len(self._root) + 1
        return [info.path[cut:] for info in found if info.type == pafs.FileType.Directory]

    def open(self, path: str) -> pa.NativeFile:
        """For reading anywhere in it. Raises OSError."""
        return self._fs.open_input_file(self._path(path))

    def write_table(self, path: str, table: pa.Table, plain_columns: tuple[str, ...] = ()) -> int:
        """A Parquet file, whole or not at all; one that is there already is replaced. Gives its bytes.

        `plain_columns`: texts that hardly repeat. Raises OSError.
        """
        texts = [f.name for f in table.schema if f.type == pa.string() and f.name not in plain_columns]
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd", use_dictionary=texts or False)
        return self._put(path, sink.getvalue())

    def put(self, path: str, content: pa.Buffer) -> int:
        """A file with this content, whole or not at all; gives its bytes. Raises OSError."""
        return self._put(path, content)

    def put_empty(self, path: str) -> None:
        """A file without content."""
        self._put(path, pa.py_buffer(b""))

    def delete(self, path: str) -> None:
        """One that is gone already is no error."""
        try:
            self._fs.delete_file(self._path(path))
        except FileNotFoundError:
            return

    def delete_folder(self, path: str) -> None:
        """With everything in it, hidden files too; one that is gone already is no error."""
        try:
            self._fs.delete_dir(self._path(path))
        except FileNotFoundError:
            return

    def clear_unfinished(self, folder: str, before_s: float) -> None:
        """Remove hidden files below `folder` that a writer left behind, last touched before a time (epoch, UTC)."""
        for info in self._fs.get_file_info(pafs.FileSelector(self._path(folder), allow_not_found=True, recursive=True)):
            if info.base_name.endswith(".unfinished") and (info.mtime_ns or 0) / 1e9 < before_s:
                self._fs.delete_file(info.path)

    def _put(self, path: str, content: pa.Buffer) -> int:
        target = self._path(path)
        folder, _, name = target.rpartition("/")
        if self._fs.type_name in _OBJECT_STORES:
            with self._fs.open_output_stream(target) as stream:
                stream.write(content)
            return int(content.size)
        self._fs.create_dir(folder, recursive=True)
        unfinished = f"{folder}/.{name}.{uuid.uuid4().hex[:8]}.unfinished"
        try:
            if isinstance(self._fs, pafs.LocalFileSystem):
                with open(unfinished, "wb") as file:
                    file.write(content)
                    file.flush()
                    # Offsets are committed after this: a power cut must not take back what they stand for.
                    os.fsync(file.fileno())
                os.replace(unfinished, target)
                _sync_folder(folder)
            else:
                with self._fs.open_output_stream(unfinished) as stream:
                    stream.write(content)
                self._fs.move(unfinished, target)
        except BaseException:
            self._forget(unfinished)
            raise
        return int(content.size)

    def _forget(self, path: str) -> None:
        try:
            self._fs.delete_file(path)
        except OSError:
            return

    def _path(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root


def _sync_folder(folder: str) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
