"""The Zarr side of a store: create its arrays, grow them, turn a block into one Zarr shard's bytes.

An array's shard is a block of rows, its inner chunk one row. Blocks are encoded in memory by zarr itself and uploaded
as whole objects, because writing part of a Zarr shard reads it first and two writers in one lose data in silence.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import zarr
from fsspec.asyn import AsyncFileSystem
from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper
from fsspec.implementations.local import LocalFileSystem
from numpy.typing import NDArray
from zarr.abc.store import Store
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.core.buffer import Buffer
from zarr.errors import ContainsArrayError
from zarr.storage import FsspecStore, LocalStore, MemoryStore

from pipeline import storage
from schemas.layout import array_path
from schemas.receipts import ArrayLayout, Manifest


def open_zarr(url: str, *, read_only: bool) -> Store:
    """A zarr store over the same file system, options included, that everything else uses."""
    fs, path = storage.open_fs(url)
    if isinstance(fs, LocalFileSystem):
        return LocalStore(path, read_only=read_only)
    if isinstance(fs, AsyncFileSystem):
        # In threads: awaited on zarr's own event loop, it would be a second client, which nobody closes.
        return FsspecStore(fs=AsyncFileSystemWrapper(fs, asynchronous=True), path=path, read_only=read_only)
    return FsspecStore.from_url(url, read_only=read_only)


def create_arrays(url: str, manifest: Manifest) -> None:
    """Create whatever array is not there yet, with no rows. What exists is left alone."""
    store = open_zarr(url, read_only=False)
    root = zarr.open_group(store, mode="a", zarr_format=3)
    if "gatehouse_schema" not in root.attrs:
        root.attrs["gatehouse_schema"] = manifest.schema_version
    for layout in manifest.arrays:
        try:
            _create(store, layout, manifest, rows=0, name=array_path(layout.group, layout.tap))
        except ContainsArrayError:
            continue


def ensure_rows(url: str, manifest: Manifest, rows: int) -> None:
    """Grow every array to at least `rows` rows; called before any data is written there.

    Arrays only grow: a driver that acts on an old view may set a smaller number, which hides nothing from
    `FeatureStore` (it trusts the markers) and is put right by whoever looks next.
    """
    root = zarr.open_group(open_zarr(url, read_only=False), mode="r+", zarr_format=3)
    for layout in manifest.arrays:
        array = root[array_path(layout.group, layout.tap)]
        assert isinstance(array, zarr.Array)
        if array.shape[0] < rows:
            array.resize((rows, *array.shape[1:]))


def encode(layout: ArrayLayout, manifest: Manifest, block: NDArray[np.generic]) -> bytes | None:
    """One block of rows [rows_per_block, C, h, w] as the bytes of one Zarr shard; rows of NaN take no space.

    Returns:
        The object's bytes, or None where every row is NaN, since zarr stores nothing then.
    """
    objects: dict[str, Buffer] = {}
    array = _create(MemoryStore(objects), layout, manifest, rows=manifest.rows_per_block, name="block")
    array[:] = block
    found = objects.get("block/c/" + "/".join(["0"] * block.ndim))
    return None if found is None else found.to_bytes()


def _create(
    store: Store, layout: ArrayLayout, manifest: Manifest, *, rows: int, name: str
) -> zarr.Array[Any]:
    level = int(manifest.identity["output"]["compression_level"])
    compression = [BloscCodec(cname="zstd", clevel=level, shuffle="bitshuffle")] if level else []
    shape = tuple(layout.shape)
    axes = ("channel", "y", "x") if len(shape) == 3 else tuple(f"axis{i}" for i in range(len(shape)))
    return zarr.create_array(
        store,
        name=name,
        shape=(rows, *shape),
        chunks=(1, *shape),
        shards=(manifest.rows_per_block, *shape),
        dtype=layout.dtype,
        fill_value=float("nan"),
        compressors=[*compression, Crc32cCodec()],
        dimension_names=("row", *axes),
        attributes={"group": layout.group, "tap": layout.tap},
    )
