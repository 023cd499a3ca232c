"""What `FeatureStore` shows: committed rows only, and nothing read that was not asked for."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
import zarr
from fsspec.implementations.local import LocalFileSystem

from pipeline import FeatureStore
from pipeline.batches import Assignment
from pipeline.store import StoreError
from schemas.layout import array_path
from schemas.receipts import Manifest
from tests.attempts import Draft, again, make_store, manifest, shard, store_shard, value
from tests.stores import CHANNELS, TAPS

PLAIN = [f"plain/{tap}" for tap in TAPS]


@pytest.fixture
def store(built: Path) -> FeatureStore:
    return FeatureStore(str(built / "store"))


@pytest.fixture
def made_of() -> Manifest:
    return manifest()


@pytest.fixture
def url(tmp_path: Path, made_of: Manifest) -> str:
    """A store with no shard yet."""
    url = str(tmp_path / "store")
    make_store(url, made_of)
    return url


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no feature store at"):
        FeatureStore(str(tmp_path))


def test_values_are_those_that_plain_zarr_reads(store: FeatureStore, built: Path) -> None:
    """In the order asked for, repeated where asked twice; a failed row is NaN."""
    rows = np.array([9, 0, 4, 4, 7])
    maps = store.read(rows, [*PLAIN, f"caption/{TAPS[0]}"])
    for name, values in maps.items():
        array = zarr.open_array(built / "store" / array_path(*name.split("/")), mode="r")
        assert values.dtype == array.dtype == np.float16
        np.testing.assert_array_equal(values, np.asarray(array[:])[rows])
    assert np.isnan(maps[PLAIN[0]][0]).all()  # b.tar's bad image
    assert np.isnan(maps[f"caption/{TAPS[0]}"][2:4]).all()  # no caption
    assert np.isfinite(maps[PLAIN[0]][1:]).all()


def test_no_rows(store: FeatureStore) -> None:
    assert store.read([], PLAIN)[PLAIN[1]].shape == (0, CHANNELS[1], 4, 4)


def test_taps(store: FeatureStore) -> None:
    assert list(store.taps) == [f"{group}/{tap}" for group in ("plain", "caption") for tap in TAPS]
    assert store.taps[PLAIN[1]].shape == [CHANNELS[1], 4, 4]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Paths of files that were opened."""
    paths: list[str] = []
    original = LocalFileSystem._open

    def spy(self: LocalFileSystem, path: str, *args: object, **options: object) -> object:
        paths.append(path)
        return original(self, path, *args, **options)

    monkeypatch.setattr(LocalFileSystem, "_open", spy)
    yield paths


def test_only_what_is_asked_for_is_read(store: FeatureStore, opened: list[str], built: Path) -> None:
    """One tap of one row touches one block of one array: not the other taps, not the other blocks."""
    store.read(store.rows()[:0], [])
    opened.clear()
    store.read([0], [PLAIN[1]])
    assert {path.removeprefix(f"{built}/store/") for path in opened} == {f"features/{PLAIN[1]}/c/0/0/0/0"}


def test_other_taps_need_not_even_be_there(small_store: Path) -> None:
    """As when a user copied only the arrays that they use."""
    for name in ("caption", f"plain/{TAPS[0]}"):
        (small_store / "features" / name).rename(small_store / name.replace("/", "-"))
    store = FeatureStore(str(small_store))
    assert np.isfinite(store.read(store.rows(), [PLAIN[1]])[PLAIN[1]]).all()


@pytest.mark.parametrize("row", [-1, 10, 11, 10**9])
def test_uncommitted_rows_are_refused(store: FeatureStore, row: int) -> None:
    """They read as NaN, or as what a dead attempt left there. Row 10 is in b.tar's extent, but holds nothing."""
    with pytest.raises(
        IndexError, match=f"row {row} is not committed; take rows from the index's column 'row'"
    ):
        store.read([0, row], [PLAIN[0]])


def test_rows_of_attempts_without_a_marker_are_not_shown(url: str, made_of: Manifest) -> None:
    """Their blocks are in the arrays all the same."""
    store_shard(url, made_of, Assignment(shard()), ["a"])
    Draft(url, made_of, Assignment(shard("b.tar")), hint=1).write(list("abcd"))
    store = FeatureStore(url)
    assert store.rows().tolist() == [0]
    with pytest.raises(IndexError, match="row 8 is not committed"):
        store.read([8], ["plain/tap"])


def test_a_store_is_seen_as_it_was_when_opened(url: str, made_of: Manifest) -> None:
    """Index and rows must not come from two moments."""
    store_shard(url, made_of, Assignment(shard()), ["a"])
    store = FeatureStore(url)
    assert len(store.index) == 1
    store_shard(url, made_of, Assignment(shard("b.tar")), ["b"])
    assert len(store.index) == len(store.rows()) == 1
    assert len(FeatureStore(url).rows()) == 2


def test_a_retried_row_replaces_the_failed_one(url: str, made_of: Manifest) -> None:
    """The newest outcome counts, and only its row can be read."""
    store_shard(url, made_of, Assignment(shard()), ["a", "b"], {"b": "io-error"})
    draft = Draft(url, made_of, again(Assignment(shard()), 1, start=1, done=2))
    draft.write(["b"])
    draft.commit()
    store = FeatureStore(url)
    assert store.index["status"].to_pylist() == ["ok", "ok"]
    new = int(store.rows()[1])
    assert (store.read([new], ["plain/tap"])["plain/tap"] == value("b")).all()
    with pytest.raises(IndexError, match="row 1 is not committed"):
        store.read([1], ["plain/tap"])


def test_rows_are_readable_though_another_driver_shrank_the_array(url: str, made_of: Manifest) -> None:
    """Metadata of arrays are overwritten by whoever grows them; markers are not."""
    store_shard(url, made_of, Assignment(shard()), list("abcdef"))
    array = Path(url) / array_path("plain", "tap") / "zarr.json"
    array.write_text(array.read_text().replace('"shape": [\n    8,', '"shape": [\n    1,'))
    assert zarr.open_array(array.parent, mode="r").shape[0] == 1
    store = FeatureStore(url)
    assert (store.read([5], ["plain/tap"])["plain/tap"] == value("f")).all()


def test_unknown_names(store: FeatureStore) -> None:
    """The message has what may have been meant."""
    with pytest.raises(KeyError, match=f"has no 'up-level1-upsampler-out'; nearest of 4: .*{PLAIN[1]}"):
        store.read([0], [TAPS[1]])
    with pytest.raises(KeyError, match="has no 'x'; nearest of 4: plain/"):
        store.layout("x")
    with pytest.raises(KeyError, match="no group 'fine', only plain, caption"):
        store.rows("fine")


def test_good_rows(store: FeatureStore) -> None:
    """Of all groups, or of one: a row without a caption is good where the prompt is fixed."""
    assert len(store.rows()) == len(store.rows("caption")) == 8
    assert set(store.rows("plain")) - set(store.rows()) == {4}
    assert pc.all(pc.equal(store.good()["status"], "ok")).as_py()


def test_pooled(store: FeatureStore) -> None:
    """The mean over h and w, for exactly the rows that are good in the groups asked for, in the index's order."""
    table = store.pooled(PLAIN)
    rows = store.rows("plain")
    assert table["row"].to_pylist() == rows.tolist()
    for name, maps in store.read(rows, PLAIN).items():
        vectors = np.stack(table[name].to_numpy())
        np.testing.assert_allclose(vectors, maps.astype(np.float32).mean((2, 3)), atol=2e-3)
    assert store.pooled([PLAIN[0], f"caption/{TAPS[0]}"])["row"].to_pylist() == store.rows().tolist()


def test_pooled_of_nothing(url: str) -> None:
    """An empty store has its columns."""
    table = FeatureStore(url).pooled(["plain/tap"])
    assert table.column_names == ["row", "plain/tap"]
    assert len(table) == 0


@pytest.mark.parametrize(
    ("missing", "message"), [("maps", "holds no maps"), ("pooled", "holds no pooled vectors")]
)
def test_what_was_not_stored(tmp_path: Path, made_of: Manifest, missing: str, message: str) -> None:
    """`output.maps: false` must not look like rows of NaN."""
    output = {**made_of.identity["output"], missing: False}
    made_of = made_of.model_copy(update={"identity": {**made_of.identity, "output": output}})
    make_store(str(tmp_path / "store"), made_of)
    store = FeatureStore(str(tmp_path / "store"))
    with pytest.raises(ValueError, match=message):
        _ = store.read([], ["plain/tap"]) if missing == "maps" else store.pooled(["plain/tap"])


def test_pickles_when_open(store: FeatureStore) -> None:
    """As DataLoader does for spawned workers."""
    before = store.read([0], PLAIN)
    copy = pickle.loads(pickle.dumps(store))
    for name, values in copy.read([0], PLAIN).items():
        np.testing.assert_array_equal(values, before[name])
