"""The torch data set, in this process and in DataLoader's workers."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from pipeline import FeatureDataset, FeatureStore, PooledDataset
from pipeline.frames import Frame
from pipeline.labels import IGNORE, BadLabel, Masks
from pipeline.storage import StorageError, open_fs
from tests.conftest import BucketUrl
from tests.stores import CHANNELS, TAPS, block
from tests.tars import encode, make_tar

PLAIN = [f"plain/{tap}" for tap in TAPS]
CAPTION = f"caption/{TAPS[0]}"


def test_items_are_the_good_rows_of_the_groups_asked_for(built: Path) -> None:
    """A row that failed in one group is still good in another."""
    store = FeatureStore(str(built / "store"))
    dataset = FeatureDataset(str(built / "store"), [PLAIN[0]])
    rows = [dataset[place]["row"] for place in range(len(dataset))]
    assert rows == store.rows("plain").tolist()
    assert len(FeatureDataset(str(built / "store"), [CAPTION])) == 8
    assert len(FeatureDataset(str(built / "store"))) == 8


def test_an_item(built: Path) -> None:
    store = FeatureStore(str(built / "store"))
    item = FeatureDataset(str(built / "store"), PLAIN)[6]
    values = store.read([item["row"]], PLAIN)
    assert (item.pop("shard"), item.pop("key"), item.pop("caption")) == ("sub/b.tar", "0", "another picture")
    assert item.pop("row") == store.rows("plain")[6]
    assert item.keys() == set(PLAIN)
    for name in PLAIN:
        assert item[name].dtype == torch.float16
        assert torch.equal(item[name], torch.from_numpy(values[name][0]))


def test_places_count_from_both_ends(built: Path) -> None:
    dataset = FeatureDataset(str(built / "store"), PLAIN)
    assert dataset[-1]["row"] == dataset[len(dataset) - 1]["row"]
    with pytest.raises(IndexError):
        dataset[len(dataset)]


def test_a_batch_is_one_read_a_tap(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading row by row costs a request each."""
    dataset = FeatureDataset(str(built / "store"), PLAIN)
    alone = [dataset[place] for place in (7, 0, 3, 3)]
    reads: list[Any] = []
    read = FeatureStore.read
    monkeypatch.setattr(FeatureStore, "read", lambda *args: reads.append(args) or read(*args))  # type: ignore[func-returns-value]
    together = dataset.__getitems__([7, 0, 3, 3])
    assert len(reads) == 1
    for one, other in zip(alone, together, strict=True):
        assert one["row"] == other["row"]
        assert torch.equal(one[PLAIN[1]], other[PLAIN[1]])


def test_unknown_taps_fail_at_once(built: Path) -> None:
    """Not in a worker, hours later."""
    with pytest.raises(KeyError, match=f"nearest of 4: {PLAIN[0]}"):
        FeatureDataset(str(built / "store"), [PLAIN[0] + "put"])


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_dataloader_workers(built: Path, context: str) -> None:
    """What a spawned worker gets must survive pickling."""
    check_workers(str(built / "store"), str(built / "shards"), context)


@pytest.mark.s3
def test_forked_workers_on_s3(built: Path, s3: BucketUrl) -> None:
    """S3 clients hang in a forked child when they were made by its parent."""
    url = s3()
    fs, root = open_fs(url)
    fs.put(f"{built}/", f"{root}/", recursive=True)
    check_workers(f"{url}/store", f"{url}/shards", "fork")


def check_workers(url: str, shards: str, context: str) -> None:
    """Order and values are those of `FeatureStore.read`, though this process has opened the store before."""
    store = FeatureStore(url)
    dataset = FeatureDataset(url, PLAIN, join=shards, fields=["jpg"])
    dataset[0]
    rows = store.rows("plain")
    values = store.read(rows, PLAIN)
    loader = DataLoader(
        dataset,
        batch_size=4,
        num_workers=2,
        multiprocessing_context=context,
        collate_fn=_with_members,
        timeout=60,
    )
    seen = 0
    for batch in loader:
        size = len(batch["row"])
        assert batch["row"].tolist() == rows[seen : seen + size].tolist()
        for name in PLAIN:
            assert torch.equal(batch[name], torch.from_numpy(values[name][seen : seen + size]))
        assert all(data.startswith(b"\xff\xd8") for data in batch["images"])
        seen += size
    assert seen == len(rows) == 9


def _with_members(items: list[dict[str, Any]]) -> dict[str, Any]:
    images = [item.pop("members")["jpg"] for item in items]
    return {**torch.utils.data.default_collate(items), "images": images}


def test_batches_with_and_without_captions(built: Path) -> None:
    """DataLoader cannot batch None, and a row without a caption is good for a fixed prompt."""
    (batch,) = DataLoader(FeatureDataset(str(built / "store"), [PLAIN[0]]), batch_size=9)
    assert batch["caption"][3:6] == ["picture 3", "", "picture 5"]
    assert batch[PLAIN[0]].shape == (9, CHANNELS[0], 2, 2)


def test_embedded_shards_can_be_joined(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo's store names them so."""
    monkeypatch.setattr("pipeline.embedded.SHARDS", str(built / "shards"))
    dataset = FeatureDataset(str(built / "store"), [PLAIN[0]], join="embedded")
    assert dataset[1]["members"]["seg.png"] == b"mask 1"


@pytest.fixture
def labelled(tmp_path: Path) -> str:
    """Shards of the built store's keys, whose masks have the class of their number, but for one class too large."""
    (tmp_path / "sub").mkdir()
    for shard, size, count in (("a.tar", (40, 60), 6), ("sub/b.tar", (60, 40), 3)):
        masks = [np.full(size, number, np.uint8) for number in range(count)]
        pngs = [encode(Image.fromarray(mask), "PNG") for mask in masks]
        make_tar(tmp_path / shard, [(f"{number}.seg.png", data) for number, data in enumerate(pngs)])
    return str(tmp_path)


def test_labels_come_with_their_frame(built: Path, labelled: str) -> None:
    """Other members only where they are asked for."""
    dataset = FeatureDataset(str(built / "store"), PLAIN, join=labelled, labels=Masks(classes=9))
    items = dataset.__getitems__([3, 8])
    assert items[0].keys() == {"key", "shard", "row", "caption", *PLAIN, "label", "frame"}
    assert [item["label"].unique().tolist() for item in items] == [[3], [2]]
    assert items[0]["label"].shape == (64, 64)
    assert items[1]["frame"] == dataset.frame(8) == Frame((60, 40), (64, 64), "stretch")
    both = FeatureDataset(
        str(built / "store"), PLAIN, join=labelled, labels=Masks(classes=9), fields=["SEG.PNG"]
    )
    assert both[0]["members"].keys() == {"seg.png"} and both[0]["label"].shape == (64, 64)


def test_labels_lie_as_the_store_has_its_pictures(small_store: Path, labelled: str) -> None:
    """Guards against labels that are stretched where pictures were padded."""
    manifest = json.loads((small_store / "manifest.json").read_text())
    manifest["identity"]["image"]["fit"] = "pad"
    (small_store / "manifest.json").write_text(json.dumps(manifest))
    label = FeatureDataset(str(small_store), PLAIN, join=labelled, labels=Masks(classes=9))[3]["label"]
    assert label[9].unique().tolist() == [IGNORE] and label[10].unique().tolist() == [3]


def test_bad_labels_are_found_before_they_are_read(built: Path, labelled: str) -> None:
    """In the order of the data set, whatever order they are read in."""
    dataset = FeatureDataset(str(built / "store"), PLAIN, join=labelled, labels=Masks(classes=4)).subset(
        [8, 4, 0, 5, 7]
    )
    found = dataset.check_labels()
    assert found.good == [0, 2, 4]
    assert found.reasons == Counter({"class-out-of-range": 2})
    assert found.first is not None
    assert found.first.startswith(
        "class-out-of-range: a.tar: sample '4': seg.png has class 4 in 2400 of its pixels"
    )
    again = dataset.subset(found.good[::-1]).check_labels()
    assert again.reasons == Counter() and again.digest == dataset.subset(found.good).check_labels().digest
    assert again.digest != found.digest, "it is a hash of all labels"
    with pytest.raises(BadLabel, match=r"a\.tar: sample '4'"):
        dataset[1]


def test_every_reason_is_counted(built: Path) -> None:
    """The built shards' masks are no PNGs, and some samples have none."""
    labels = Masks(classes=4)
    found = FeatureDataset(
        str(built / "store"), PLAIN, join=str(built / "shards"), labels=labels
    ).check_labels()
    assert found.good == [] and found.reasons == Counter({"undecodable-label": 6, "no-label": 3})


def test_labels_need_shards(built: Path) -> None:
    with pytest.raises(ValueError, match="give `join`"):
        FeatureDataset(str(built / "store"), labels=Masks(classes=4))
    with pytest.raises(ValueError, match="has no labels to check"):
        FeatureDataset(str(built / "store")).check_labels()


def test_a_subset(built: Path) -> None:
    dataset = FeatureDataset(str(built / "store"), PLAIN)
    subset = dataset.subset([7, -9, 3])
    assert len(subset) == 3 and len(dataset) == 9
    assert [subset[place]["row"] for place in range(3)] == [dataset[place]["row"] for place in (7, 0, 3)]
    assert subset.blocks.tolist() == dataset.blocks[[7, 0, 3]].tolist()
    assert (
        subset.fingerprint != dataset.fingerprint == FeatureDataset(str(built / "store"), PLAIN).fingerprint
    )
    assert dataset.fingerprint != FeatureDataset(str(built / "store"), PLAIN[:1]).fingerprint
    with pytest.raises(IndexError):
        dataset.subset([9])


def test_rows_that_were_read_are_not_read_again(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache is there for the store's sake; a subset has the same one."""
    row = sum(FeatureStore(str(built / "store")).layout(name).row_bytes for name in PLAIN)
    dataset = FeatureDataset(str(built / "store"), PLAIN, cache_bytes=3 * row)
    reads: list[list[int]] = []
    read = FeatureStore.read

    def counted(store: FeatureStore, rows: list[int], taps: list[str]) -> Any:
        reads.append(rows)
        return read(store, rows, taps)

    monkeypatch.setattr(FeatureStore, "read", counted)
    first = dataset.__getitems__([0, 1, 2, 3])
    again = dataset.subset([3, 2, 1, 0]).__getitems__([0, 1, 2, 3])
    assert [len(rows) for rows in reads] == [4, 1]
    for one, other in zip(first, reversed(again), strict=True):
        assert one["row"] == other["row"] and torch.equal(one[PLAIN[0]], other[PLAIN[0]])


def test_blocks_are_rows_that_lie_together(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never across the store's own blocks, each of which is an object by itself."""
    store = FeatureStore(str(built / "store"))
    dataset, whole = FeatureDataset(store.url, PLAIN), store.manifest.rows_per_block
    rows = np.array([dataset[place]["row"] for place in range(9)])
    assert whole > 2 and dataset.blocks.tolist() == (rows // whole).tolist()
    row_bytes = sum(store.layout(name).row_bytes for name in PLAIN)
    monkeypatch.setattr("pipeline.dataset._REQUEST_BYTES", 2 * row_bytes // len(PLAIN))
    pieces = [(row // whole, row % whole // 2) for row in rows]
    _, blocks = np.unique(dataset.blocks, return_inverse=True)
    assert blocks.tolist() == [sorted(set(pieces)).index(piece) for piece in pieces]


def test_pooled_vectors_are_maps_of_one_cell(built: Path, labelled: str) -> None:
    """A head for vectors reads them as it reads maps."""
    url = str(built / "store")
    dataset = PooledDataset(url, PLAIN, join=labelled, labels=Masks(classes=9)).subset(range(8, -1, -1))
    table = FeatureStore(url).pooled(PLAIN)
    maps = FeatureDataset(url, PLAIN)
    items = dataset.__getitems__([0, 8, 4])
    for item, place in zip(items, (8, 0, 4), strict=True):
        assert item["row"] == table["row"][place].as_py() == maps[place]["row"]
        for name, channels in zip(PLAIN, CHANNELS, strict=True):
            assert item[name].shape == (channels, 1, 1) and item[name].dtype == torch.float32
            assert item[name].flatten().tolist() == table[name][place].as_py()
            mean = maps[place][name].float().mean((1, 2))
            torch.testing.assert_close(item[name].flatten(), mean, rtol=1e-2, atol=1e-2)
    assert items[0]["label"].unique().tolist() == [2]


def test_a_row_that_is_lost_is_not_served_as_numbers(small_store: Path) -> None:
    """What is not stored reads as NaN, which a head would make a class of."""
    dataset = FeatureDataset(str(small_store), [PLAIN[0]])
    row = dataset[0]["row"]
    block(small_store, row // dataset._store.manifest.rows_per_block).unlink()
    lost = FeatureDataset(str(small_store), [PLAIN[0]])
    with pytest.raises(
        StorageError, match=rf"{PLAIN[0]} of row {row} is committed, and not there; `gatehouse verify`"
    ):
        lost[0]
    assert len(lost) == len(dataset)


def test_fields_need_to_know_where_they_lie(built: Path) -> None:
    with pytest.raises(ValueError, match=r"fields of .* lie in the original shards; give `join`"):
        FeatureDataset(str(built / "store"), PLAIN, fields=["seg.png"])
