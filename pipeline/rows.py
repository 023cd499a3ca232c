"""Rows out of the blocks of a store: the bytes that are wanted, at once and past zarr's own machinery.

zarr is made for boxes of large arrays: it takes about a millisecond of Python for each inner chunk, reads a shard's
index again at every call, and picks single rows element by element. Readers here want some rows of many, from shards
whose layout is known: Zarr's sharding codec, one row an inner chunk, its index (offset, bytes) at the end. So indexes
are read once, the bytes of all rows and taps are fetched together, and each row is decompressed into its place.
`make bench` compares this with np.load.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
from numcodecs.blosc import Blosc
from numcodecs.checksum32 import CRC32C
from numpy.typing import NDArray

from pipeline import storage
from schemas.layout import block_path
from schemas.receipts import ArrayLayout, Manifest

_ABSENT = 2**64 - 1  # offset and size of an inner chunk that is not stored
_GAP_BYTES = 128 * 2**10  # up to here, bytes between two rows are cheaper to read than a second request is
_REQUEST_BYTES = 32 * 2**20
_THREADED_BYTES = 256 * 2**10  # a row of a tap, in the mean
_INDEXES_KEPT = 2**15  # of one block and tap each, 16 bytes a row

_Range = tuple[str, int, int]
"""Path of an object, first byte and end."""


class RowReader:
    """Reads rows of a store's arrays; which rows are committed is the caller's business.

    Safe to pickle, and to use in several threads and in processes started by fork.

    Args:
        url: of the store.
        manifest: its own.
    """

    def __init__(self, url: str, manifest: Manifest) -> None:
        self._url, self._rows_per_block = url, manifest.rows_per_block
        self._compressed = int(manifest.identity["output"]["compression_level"]) > 0
        self._indexes: dict[str, NDArray[np.uint64]] = {}

    def read(self, layouts: Sequence[ArrayLayout], rows: NDArray[np.int64]) -> list[NDArray[Any]]:
        """Some rows of some arrays, [len(rows), C, h, w] each; NaN where nothing is stored.

        Raises:
            StorageError: stored bytes do not match their checksum.
        """
        places = [divmod(row, self._rows_per_block) for row in rows.tolist()]
        paths = [
            [block_path(one.group, one.tap, block, 1 + len(one.shape)) for block, _ in places]
            for one in layouts
        ]
        indexes = self._open(path for of_array in paths for path in of_array)
        found = [np.empty((len(rows), *one.shape), one.dtype) for one in layouts]
        wanted: list[tuple[_Range, NDArray[Any]]] = []
        for values, of_array in zip(found, paths, strict=True):
            for target, path, (_, place) in zip(values, of_array, places, strict=True):
                start, size = indexes[path][place].tolist()
                if size == _ABSENT:
                    target[...] = np.nan
                else:
                    wanted.append(((path, start, start + size), target))
        data = self._fetch([range_ for range_, _ in wanted])
        with _mapping([target for _, target in wanted]) as each:
            for _ in each(lambda one: self._decode(one[0], data[one[0]], one[1]), wanted):
                pass  # raises what went wrong
        return found

    def _open(self, paths: Iterable[str]) -> dict[str, NDArray[np.uint64]]:
        """Indexes of blocks, [rows_per_block, 2] of offset and size; a block of nothing but NaN has no object."""
        wanted = dict.fromkeys(paths)
        kept = self._indexes  # this very one: another thread may begin anew
        missing = [path for path in wanted if path not in kept]
        if len(kept) + len(missing) > _INDEXES_KEPT:
            self._indexes = kept = {}
            missing = list(wanted)
        if missing:
            fs, root = storage.open_fs(self._url)
            size = 16 * self._rows_per_block + 4
            starts, ends = [-size] * len(missing), [None] * len(missing)
            answers = fs.cat_ranges([f"{root}/{path}" for path in missing], starts, ends, on_error="return")
            for path, answer in zip(missing, answers, strict=True):
                if isinstance(answer, FileNotFoundError):
                    kept[path] = np.full((self._rows_per_block, 2), _ABSENT, "<u8")
                elif isinstance(answer, BaseException):
                    raise answer
                else:
                    index = np.frombuffer(_checked(path, answer), "<u8")
                    kept[path] = index.reshape(self._rows_per_block, 2)
        return {path: kept[path] for path in wanted}

    def _fetch(self, ranges: Iterable[_Range]) -> dict[_Range, memoryview]:
        """The bytes of each range; those near each other come in one request."""
        spans: list[_Range] = []
        span_of: dict[_Range, int] = {}
        for path, start, end in sorted(set(ranges)):
            if spans and spans[-1][0] == path and _near(spans[-1], start, end):
                spans[-1] = (path, spans[-1][1], end)
            else:
                spans.append((path, start, end))
            span_of[path, start, end] = len(spans) - 1
        fs, root = storage.open_fs(self._url)
        names = [f"{root}/{path}" for path, _, _ in spans]
        starts, ends = [start for _, start, _ in spans], [end for _, _, end in spans]
        data = fs.cat_ranges(names, starts, ends, on_error="raise")
        return {
            (path, start, end): memoryview(data[span])[start - spans[span][1] : end - spans[span][1]]
            for (path, start, end), span in span_of.items()
        }

    def _decode(self, range_: _Range, data: memoryview, target: NDArray[Any]) -> None:
        values = _checked(range_[0], data)
        if self._compressed:
            Blosc().decode(values, target)
        else:
            target[...] = np.frombuffer(values, target.dtype).reshape(target.shape)


@contextmanager
def _mapping(targets: Sequence[NDArray[Any]]) -> Iterator[Callable[..., Iterable[Any]]]:
    """`map`, in threads where there is much to decompress, which needs no lock of Python's.

    Worker processes have others of their kind beside them, and small rows take more Python than decompression.
    """
    large = sum(target.nbytes for target in targets) >= _THREADED_BYTES * len(targets) > 0
    if not large or multiprocessing.parent_process() is not None:
        yield map
        return
    with ThreadPoolExecutor(min(len(targets), os.cpu_count() or 1)) as pool:
        yield pool.map


def _near(span: _Range, start: int, end: int) -> bool:
    return start - span[2] <= _GAP_BYTES and end - span[1] <= _REQUEST_BYTES


def _checked(path: str, data: bytes | memoryview) -> NDArray[np.uint8]:
    """Bytes without the checksum at their end."""
    try:
        values: NDArray[np.uint8] = CRC32C().decode(data)
    except (RuntimeError, ValueError) as error:
        raise storage.StorageError(
            f"{path}: {len(data)} bytes that do not match their checksum; `gatehouse verify` tells what is damaged"
        ) from error
    return values
