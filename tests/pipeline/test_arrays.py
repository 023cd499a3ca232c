"""The Zarr side: blocks as whole objects, arrays that only grow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.storage import MemoryStore

from pipeline import arrays, storage
from schemas.layout import block_path
from schemas.receipts import ArrayLayout, Manifest
from tests.attempts import SHAPE, make_store, manifest


def with_level(level: int, dtype: str) -> Manifest:
    made = manifest()
    layouts = [layout.model_copy(update={"dtype": dtype}) for layout in made.arrays]
    output = made.identity["output"] | {"compression_level": level}
    return made.model_copy(update={"identity": made.identity | {"output": output}, "arrays": layouts})


def array_of(root: zarr.Group, name: str) -> zarr.Array[Any]:
    found = root[f"features/{name}"]
    assert isinstance(found, zarr.Array)
    return found


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 9), st.sampled_from(["float16", "float32"]), st.sets(st.integers(0, 3)), st.integers(0, 99)
)
def test_an_encoded_block_is_what_zarr_reads(level: int, dtype: str, empty: set[int], seed: int) -> None:
    """In any place of the array: the bytes of a Zarr shard do not say where it lies."""
    made = with_level(level, dtype)
    layout = made.arrays[0]
    block = np.random.default_rng(seed).normal(size=(4, *SHAPE)).astype(dtype)
    block[sorted(empty)] = np.nan
    data = arrays.encode(layout, made, block)
    store = MemoryStore()
    array = arrays._create(store, layout, made, rows=12, name="a")
    if data is None:
        assert len(empty) == 4
    else:
        store._store_dict[f"a/c/1/{'/'.join('000')}"] = zarr.core.buffer.cpu.Buffer.from_bytes(data)
    np.testing.assert_array_equal(array[4:8], block)
    assert np.isnan(array[:4]).all() and np.isnan(array[8:]).all()


def test_encoding_is_deterministic() -> None:
    block = np.random.default_rng(0).normal(size=(4, *SHAPE)).astype(np.float16)
    made = manifest()
    assert arrays.encode(made.arrays[0], made, block) == arrays.encode(made.arrays[0], made, block.copy())


def test_arrays_only_grow(tmp_path: Path) -> None:
    url = str(tmp_path / "store")
    make_store(url, manifest())
    for asked, expected in ((8, 8), (24, 24), (16, 24)):
        arrays.ensure_rows(url, manifest(), asked)
        root = zarr.open_group(url, mode="r")
        assert {array_of(root, f"{name}/tap").shape for name in ("plain", "fine")} == {(expected, *SHAPE)}


def test_creating_again_changes_nothing(tmp_path: Path) -> None:
    """Two drivers may create one store at the same time."""
    url = str(tmp_path / "store")
    make_store(url, manifest())
    arrays.ensure_rows(url, manifest(), 16)
    before = {path: path.read_bytes() for path in tmp_path.rglob("zarr.json")}
    arrays.create_arrays(url, manifest())
    assert {path: path.read_bytes() for path in tmp_path.rglob("zarr.json")} == before


def test_axes_have_names(tmp_path: Path) -> None:
    made = manifest()
    attention = ArrayLayout(group="plain", tap="self-map", shape=[8, 16, 16], dtype="float16")
    pooled = ArrayLayout(group="plain", tap="tokens", shape=[77, 8], dtype="float16")
    made = made.model_copy(update={"arrays": [made.arrays[0], attention, pooled]})
    make_store(str(tmp_path), made)
    root = zarr.open_group(str(tmp_path), mode="r")
    assert array_of(root, "plain/tap").metadata.to_dict()["dimension_names"] == ("row", "channel", "y", "x")
    assert array_of(root, "plain/tokens").metadata.to_dict()["dimension_names"] == ("row", "axis0", "axis1")


@pytest.mark.parametrize("level", [0, 5])
def test_a_flipped_bit_is_noticed_by_zarr(level: int, tmp_path: Path) -> None:
    """Each row carries a checksum, for readers who never call verify."""
    url = str(tmp_path / "store")
    made = with_level(level, "float16")
    make_store(url, made)
    arrays.ensure_rows(url, made, 8)
    layout = made.arrays[0]
    data = bytearray(arrays.encode(layout, made, np.ones((4, *SHAPE), np.float16)) or b"")
    data[5] ^= 1
    fs, root = storage.open_fs(url)
    storage.put(fs, f"{root}/{block_path(layout.group, layout.tap, 0, 4)}", bytes(data))
    with pytest.raises(ValueError, match="checksum"):
        array_of(zarr.open_group(url, mode="r"), "plain/tap")[0]
