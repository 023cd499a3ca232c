"""The objects behind committed rows: arrays, blocks and pooled tables against receipts and index."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from numpy.typing import NDArray
from zarr.core.buffer import Buffer, default_buffer_prototype
from zarr.storage import MemoryStore, StorePath

from pipeline import arrays, storage
from schemas.layout import array_path, block_path, pooled_schema
from schemas.receipts import ArrayLayout, FileRef, Manifest, Marker

_NAMED = 8  # rows named in one fault


@dataclass(frozen=True)
class Fault:
    """Something that is not as committed."""

    shard: str | None
    """Input shard that it concerns; None for the store as such."""
    subject: str
    """An object, by its path in the store, or what else is wrong."""
    problem: str
    harmless: bool = False
    """True where `FeatureStore` reads the right values all the same."""


@dataclass(frozen=True)
class Rows:
    """What a marker commits, by its index and receipts."""

    marker: Marker
    rows: NDArray[np.int64]
    good: dict[str, NDArray[np.bool_]]
    """Per group, which of `rows` hold features."""
    objects: dict[str, FileRef]
    """Receipts of its blocks, by path."""


Job = Callable[[], Sequence[Fault]]


class Objects:
    """Checks objects of one store.

    Args:
        url: of the store.
        manifest: the store's.
        checked: counts what is checked, by kind.
        fast: compare sizes instead of contents.
    """

    def __init__(self, url: str, manifest: Manifest, checked: Counter[str], *, fast: bool) -> None:
        self.manifest = manifest
        self.fs, self.root = storage.open_fs(url)
        self._url = url
        self._checked, self._fast = checked, fast
        self._arrays: dict[str, zarr.Array[Any]] = {}
        self._maps, self._pooled = (bool(manifest.identity["output"][name]) for name in ("maps", "pooled"))

    def check_arrays(self, markers: Iterable[Marker]) -> Iterator[Fault]:
        """The arrays' metadata; what is found there decodes the blocks later."""
        if not self._maps:
            return
        last = max((extent for marker in markers for extent in marker.extents), default=-1)
        rows = (last + 1) * self.manifest.rows_per_extent
        for layout in self.manifest.arrays:
            path = f"{array_path(layout.group, layout.tap)}/zarr.json"
            self._checked["arrays"] += 1
            try:
                array = zarr.open_array(
                    arrays.open_zarr(self._url, read_only=True),
                    path=path.removesuffix("/zarr.json"),
                    mode="r",
                )
            except Exception as error:  # zarr raises almost anything for metadata that make no sense
                yield Fault(None, path, f"cannot be opened: {type(error).__name__}: {error}")
                continue
            found = (list(array.shape[1:]), array.dtype.name, array.shards)
            wanted = (layout.shape, layout.dtype, (self.manifest.rows_per_block, *layout.shape))
            if found != wanted:
                yield Fault(None, path, f"has row shape, dtype and block {found}; the manifest says {wanted}")
                continue
            if array.shape[0] < rows:
                problem = (
                    f"shows {array.shape[0]} rows of {rows} to plain zarr; the next extract job grows it"
                )
                yield Fault(None, path, problem, harmless=True)
            self._arrays[array_path(layout.group, layout.tap)] = array

    def fetch(self, shard: str, ref: FileRef) -> bytes | Fault:
        """An object's bytes, if they are those of its receipt."""
        try:
            data = self.fs.cat_file(f"{self.root}/{ref.path}")
        except OSError as error:
            return _unreadable(shard, ref.path, error)
        if len(data) != ref.size:
            return Fault(shard, ref.path, f"has {len(data)} bytes, {ref.size} were committed")
        if hashlib.sha256(data).hexdigest() != ref.sha256:
            return Fault(shard, ref.path, f"its {ref.size} bytes differ from those committed (sha256)")
        return data

    def jobs(self, rows: Rows) -> Iterator[Job]:
        """Checks of a marker's blocks and pooled vectors, one object each."""
        expected = set()
        if self._maps:
            for block in np.unique(rows.rows // self.manifest.rows_per_block).tolist():
                for layout in self.manifest.arrays:
                    path = block_path(layout.group, layout.tap, block, len(layout.shape) + 1)
                    expected.add(path)
                    ref = rows.objects.get(path)
                    if ref is not None:
                        self._count(ref)
                    yield partial(self._check_block, rows, layout, block, path, ref)
        strays = [
            Fault(rows.marker.shard, path, "is among the attempt's objects, but holds none of its rows")
            for path in rows.objects.keys() - expected
        ]
        yield partial(list, strays)
        if rows.marker.pooled is not None:
            self._count(rows.marker.pooled)
        if self._pooled and len(rows.rows):
            yield partial(self._check_pooled, rows)

    def _check_block(
        self, rows: Rows, layout: ArrayLayout, block: int, path: str, ref: FileRef | None
    ) -> list[Fault]:
        shard = rows.marker.shard
        here = rows.rows // self.manifest.rows_per_block == block
        numbers, good = rows.rows[here], rows.good[layout.group][here]
        if ref is None:  # as it should be where every row failed, since zarr stores no block of NaN
            if good.any():
                return [
                    Fault(shard, path, f"was never written, but {_listed(numbers[good])} should be in it")
                ]
            unknown = self.fs.exists(f"{self.root}/{path}")
            return [Fault(shard, path, "exists, but its attempt did not commit it")] if unknown else []
        if self._fast:
            return self._check_size(shard, ref)
        data = self.fetch(shard, ref)
        if isinstance(data, Fault):
            return [data]
        if array_path(layout.group, layout.tap) not in self._arrays:
            return []  # named with the array
        try:
            values = self._decode(layout, data)[numbers - block * self.manifest.rows_per_block]
        except Exception as error:  # codecs raise almost anything for damaged data
            return [Fault(shard, path, f"cannot be decoded: {type(error).__name__}: {error}")]
        return list(_check_values(shard, path, numbers, good, values.reshape(len(numbers), -1)))

    def _decode(self, layout: ArrayLayout, data: bytes) -> NDArray[Any]:
        """The bytes of one block as the array's own metadata decode them: [rows_per_block, C, h, w]."""
        array = self._arrays[array_path(layout.group, layout.tap)]
        metadata: Any = replace(array.metadata, shape=(self.manifest.rows_per_block, *layout.shape))
        key = metadata.encode_chunk_key((0,) * array.ndim)
        buffer: Buffer = default_buffer_prototype().buffer.from_bytes(data)
        place = StorePath(MemoryStore({key: buffer}, read_only=True))
        values = zarr.Array(zarr.AsyncArray(metadata=metadata, store_path=place))[:]
        assert isinstance(values, np.ndarray)
        return values

    def _check_pooled(self, rows: Rows) -> list[Fault]:
        """Vectors of exactly the good rows, one column in memory at a time."""
        shard, ref = rows.marker.shard, rows.marker.pooled
        if ref is None:
            return [Fault(shard, "pooled vectors", f"round {rows.marker.round} has rows but no pooled table")]
        if self._fast:
            return self._check_size(shard, ref)
        data = self.fetch(shard, ref)
        if isinstance(data, Fault):
            return [data]
        try:
            file = pq.ParquetFile(pa.BufferReader(data))
            schema = pooled_schema(
                {(layout.group, layout.tap): layout.shape[0] for layout in self.manifest.arrays}
            )
            if not file.schema_arrow.equals(schema):
                return [Fault(shard, ref.path, f"has columns {file.schema_arrow.names}, not {schema.names}")]
            if not np.array_equal(file.read(["row"])["row"].to_numpy(), rows.rows):
                return [Fault(shard, ref.path, "its rows are not those of the index")]
            return [
                Fault(
                    shard,
                    ref.path,
                    f"{layout.group}/{layout.tap}: vector and status disagree in {_listed(wrong)}",
                )
                for layout in self.manifest.arrays
                if len(wrong := self._wrong_vectors(file, layout, rows))
            ]
        except pa.ArrowException as error:
            return [Fault(shard, ref.path, f"cannot be decoded: {error}")]

    @staticmethod
    def _wrong_vectors(file: pq.ParquetFile, layout: ArrayLayout, rows: Rows) -> NDArray[np.int64]:
        vectors = file.read([f"{layout.group}/{layout.tap}"])[0].to_pylist()
        right = np.array([_is_vector(vector, layout.shape[0]) for vector in vectors])
        return rows.rows[right != rows.good[layout.group]]

    def _check_size(self, shard: str, ref: FileRef) -> list[Fault]:
        try:
            size = int(self.fs.info(f"{self.root}/{ref.path}")["size"])
        except OSError as error:
            return [_unreadable(shard, ref.path, error)]
        problem = f"has {size} bytes, {ref.size} were committed"
        return [] if size == ref.size else [Fault(shard, ref.path, problem)]

    def _count(self, ref: FileRef) -> None:
        self._checked["objects"] += 1
        self._checked["bytes"] += ref.size


def _check_values(
    shard: str, path: str, numbers: NDArray[np.int64], good: NDArray[np.bool_], values: NDArray[Any]
) -> Iterator[Fault]:
    broken = numbers[good & ~np.isfinite(values).all(1)]
    if len(broken):
        yield Fault(shard, path, f"{_listed(broken)}: good by the index, but NaN or infinite in part")
    filled = numbers[~good & ~np.isnan(values).all(1)]
    if len(filled):
        yield Fault(shard, path, f"{_listed(filled)}: failed by the index, but not NaN throughout")


def _is_vector(data: bytes | None, channels: int) -> bool:
    return (
        data is not None and len(data) == 4 * channels and bool(np.isfinite(np.frombuffer(data, "<f4")).all())
    )


def _unreadable(shard: str, path: str, error: OSError) -> Fault:
    if isinstance(error, FileNotFoundError):
        return Fault(shard, path, "is missing")
    return Fault(shard, path, f"cannot be read: {type(error).__name__}: {error}")


def _listed(rows: NDArray[np.int64]) -> str:
    more = f" and {len(rows) - _NAMED} more" if len(rows) > _NAMED else ""
    return f"row{'s' * (len(rows) > 1)} {', '.join(map(str, rows[:_NAMED]))}{more}"
