"""Objects of a store with a receipt: stored checked, hashed, and refused when they come back different."""

from __future__ import annotations

import hashlib

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

from pipeline import storage
from schemas.receipts import FileRef


def put(fs: AbstractFileSystem, root: str, path: str, data: bytes) -> FileRef:
    """Store an object under `root` and return its receipt."""
    storage.put(fs, f"{root}/{path}", data)
    return FileRef(path=path, size=len(data), sha256=hashlib.sha256(data).hexdigest())


def to_parquet(table: pa.Table, row_group_size: int | None = None) -> bytes:
    """A table as the bytes of a Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", row_group_size=row_group_size)
    return sink.getvalue().to_pybytes()


def read_parquet(
    fs: AbstractFileSystem, root: str, ref: FileRef, columns: list[str] | None = None
) -> pa.Table:
    """A table of the store, or some of its columns, checked against what its receipt says.

    Raises:
        storage.DamagedError: the object is not what was committed.
    """
    return parse_parquet(read(fs, root, ref), columns)


def read(fs: AbstractFileSystem, root: str, ref: FileRef) -> bytes:
    """An object of the store, checked against what its receipt says.

    Raises:
        storage.DamagedError: the object is not what was committed.
    """
    data: bytes = fs.cat_file(f"{root}/{ref.path}")
    if hashlib.sha256(data).hexdigest() != ref.sha256:
        raise storage.DamagedError(
            f"{ref.path}: {len(data)} bytes that differ from the {ref.size} committed; restore the object"
        )
    return data


def parse_parquet(data: bytes, columns: list[str] | None = None) -> pa.Table:
    """The bytes of a Parquet file as a table, or some of its columns."""
    return pq.read_table(pa.BufferReader(data), columns=columns)
