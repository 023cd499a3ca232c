"""pipeline.rows against zarr itself: whatever rows are asked for, in whatever order, the values are zarr's."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline import arrays, rows, storage
from pipeline.rows import RowReader
from schemas.layout import array_path, block_path
from schemas.receipts import ArrayLayout, Manifest

ROWS_PER_BLOCK, BLOCKS = 4, 3
LAYOUTS = [
    ArrayLayout(group="plain", tap="map", shape=[3, 4, 5], dtype="float16"),
    ArrayLayout(group="plain", tap="attention", shape=[2, 6, 1], dtype="float32"),
]


def manifest(level: int) -> Manifest:
    return Manifest(
        gatehouse="0",
        identity={"groups": [{"name": "plain"}], "output": {"compression_level": level}},
        arrays=LAYOUTS,
        rows_per_block=ROWS_PER_BLOCK,
        rows_per_extent=ROWS_PER_BLOCK,
        spec={},
        libraries={},
    )


def write(url: str, made_of: Manifest) -> list[NDArray[np.generic]]:
    """A store whose row 5 is NaN, and whose last block is nothing but NaN and so has no object."""
    arrays.create_arrays(url, made_of)
    arrays.ensure_rows(url, made_of, ROWS_PER_BLOCK * BLOCKS)
    fs, root = storage.open_fs(url)
    every = []
    for layout in LAYOUTS:
        values = (
            np.random.default_rng(7)
            .normal(size=(ROWS_PER_BLOCK * BLOCKS, *layout.shape))
            .astype(layout.dtype)
        )
        values[5] = values[-ROWS_PER_BLOCK:] = np.nan
        for block, part in enumerate(np.split(values, BLOCKS)):
            data = arrays.encode(layout, made_of, part)
            if data is not None:
                storage.put(fs, f"{root}/{block_path(layout.group, layout.tap, block, values.ndim)}", data)
        every.append(values)
    return every


@pytest.fixture(scope="module", params=[0, 3], ids=["raw", "zstd"])
def store(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Manifest]]:
    url = str(tmp_path_factory.mktemp("store"))
    made_of = manifest(request.param)
    write(url, made_of)
    yield url, made_of


@given(
    picked=st.lists(st.integers(0, ROWS_PER_BLOCK * BLOCKS - 1), max_size=20),
    gap=st.sampled_from([0, 10, 10**6]),
    most=st.sampled_from([1, 200, 10**6]),
    threaded=st.sampled_from([1, 10**6]),
)
def test_equals_zarr(
    store: tuple[str, Manifest], picked: list[int], gap: int, most: int, threaded: int
) -> None:
    """Guards against rows at another's place, and against wrong slices of ranges that were fetched together."""
    url, made_of = store
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "_THREADED_BYTES", threaded)
        patch.setattr(rows, "_GAP_BYTES", gap)
        patch.setattr(rows, "_REQUEST_BYTES", most)
        found = RowReader(url, made_of).read(LAYOUTS, np.array(picked, np.int64))
    for layout, values in zip(LAYOUTS, found, strict=True):
        array = zarr.open_array(f"{url}/{array_path(layout.group, layout.tap)}", mode="r")
        expected = np.asarray(array[:])[picked]
        assert values.dtype == expected.dtype
        np.testing.assert_array_equal(values, expected)


def test_indexes_are_read_once_and_neighbours_together(
    store: tuple[str, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against the reason for this module: many small requests, and indexes read again at every call."""
    url, made_of = store
    requests: list[int] = []
    fs, _ = storage.open_fs(url)
    plain = fs.cat_ranges

    def cat_ranges(paths: list[str], *args: object, **options: object) -> object:
        requests.append(len(paths))
        return plain(paths, *args, **options)

    monkeypatch.setattr(fs, "cat_ranges", cat_ranges)
    reader = RowReader(url, made_of)
    reader.read(LAYOUTS, np.array([3, 0, 1, 2, 3]))
    assert requests == [len(LAYOUTS), len(LAYOUTS)], "one index and one range a tap"
    reader.read(LAYOUTS, np.array([2]))
    assert requests[2:] == [len(LAYOUTS)], "the index is known"


def test_forgets_indexes_when_there_are_too_many(
    store: tuple[str, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against memory that grows with the store, and against losing an index that this very call needs."""
    url, made_of = store
    monkeypatch.setattr(rows, "_INDEXES_KEPT", 2)
    reader = RowReader(url, made_of)
    one_by_one = [reader.read(LAYOUTS[:1], np.array([row]))[0][0] for row in range(12)]
    together = reader.read(LAYOUTS[:1], np.arange(12))[0]
    np.testing.assert_array_equal(together, np.stack(one_by_one))


def test_can_be_pickled_after_use(store: tuple[str, Manifest]) -> None:
    """Guards against open files or clients in what DataLoader workers get."""
    url, made_of = store
    reader = RowReader(url, made_of)
    before = reader.read(LAYOUTS, np.array([1]))
    after = pickle.loads(pickle.dumps(reader)).read(LAYOUTS, np.array([1]))
    np.testing.assert_array_equal(before[0], after[0])


@pytest.mark.parametrize("threaded", [1, 10**6])
@pytest.mark.parametrize("place", ["row", "index"])
def test_damage_is_noticed(
    tmp_path: Path, place: str, threaded: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against wrong values from a damaged object, and errors that a thread keeps to itself."""
    monkeypatch.setattr(rows, "_THREADED_BYTES", threaded)
    made_of = manifest(3)
    write(str(tmp_path), made_of)
    path = tmp_path / block_path("plain", "map", 0, 4)
    data = bytearray(path.read_bytes())
    data[30 if place == "row" else -10] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        storage.StorageError, match=r"features/plain/map/c/0/0/0/0: .* checksum; `gatehouse verify`"
    ):
        RowReader(str(tmp_path), made_of).read(LAYOUTS, np.array([0]))
