"""The torch data set, in this process and in DataLoader's workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from pipeline import FeatureDataset, FeatureStore
from pipeline.storage import open_fs
from tests.conftest import BucketUrl
from tests.stores import CHANNELS, TAPS

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
