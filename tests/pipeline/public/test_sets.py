"""What each public data set's ids and names become."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from pipeline.public import ade20k, cityscapes, label_scarce
from pipeline.public.dataset import PublicDataset
from pipeline.public.masks import as_png
from tests import public_sets


def masks(found: PublicDataset, split: str) -> list[NDArray[np.uint8]]:
    samples = [found.sample(one) for one in found.splits[split]]
    return [np.asarray(Image.open(io.BytesIO(sample["seg.png"]))) for sample in samples]


def test_ade20k(tmp_path: Path) -> None:
    root = public_sets.write_ade20k(tmp_path, training=2, validation=1)
    found = ade20k.find(str(root))
    assert [one.key for one in found.splits["training"]] == [
        "training/ADE_train_00000001",
        "training/ADE_train_00000002",
    ]
    assert [one.key for one in found.splits["validation"]] == ["validation/ADE_val_00000001"]
    assert len(found.classes) == 150
    assert found.classes[0] == "thing 1, object 1"  # without the blank that some published names end in
    (mask,) = masks(found, "validation")
    published = np.asarray(Image.open(root / "annotations" / "validation" / "ADE_val_00000001.png"))
    assert {0, 1} < set(np.unique(published))
    assert np.array_equal(mask, np.where(published == 0, 255, published.astype(int) - 1))


def test_ade20k_without_some_names(tmp_path: Path) -> None:
    root = public_sets.write_ade20k(tmp_path, training=1, validation=1)
    names = (root / "objectInfo150.txt").read_text().splitlines()
    (root / "objectInfo150.txt").write_text("\n".join(names[:-1]))
    with pytest.raises(ValueError, match=r"objectInfo150\.txt: 149 names found; expected .* 150 lines"):
        ade20k.find(str(root))


def test_cityscapes_keeps_what_the_benchmark_evaluates(tmp_path: Path) -> None:
    root = public_sets.write_cityscapes(tmp_path, train=1, val=1, size=(34, 2))
    published = np.arange(34, dtype=np.uint8).repeat(2).reshape(34, 2)
    (path,) = root.glob("gtFine/train/aachen/*_labelIds.png")
    path.write_bytes(as_png(published))
    found = cityscapes.find(str(root))
    (mask,) = masks(found, "train")
    evaluated = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    assert [int(np.flatnonzero(mask[:, 0] == id).item()) for id in range(19)] == evaluated
    assert (mask[:, 0] == 255).sum() == 34 - 19
    assert [found.classes[id] for id in (0, 2, 10, 18)] == ["road", "building", "sky", "bicycle"]
    assert [one.key for one in found.splits["val"]] == ["val/lindau/lindau_000000_000019"]


def test_horse21_counts_its_background(tmp_path: Path) -> None:
    root = public_sets.write_horse21(tmp_path, train=2, test=1)
    found = label_scarce.find_horse21(str(root))
    assert len(found.classes) == 21 and found.classes[0] == "background"
    (mask,) = masks(found, "test")
    published = np.load(root / "real" / "test" / "image_0000000.npy")
    assert 0 in published and np.array_equal(mask, published)


def test_horse21_has_no_more_ids(tmp_path: Path) -> None:
    root = public_sets.write_horse21(tmp_path, train=1, test=1, size=32)
    for id, good in ((20, True), (255, True), (21, False)):
        np.save(root / "real" / "test" / "image_0000000.npy", np.full((32, 32), id))
        if good:
            label_scarce.find_horse21(str(root))
        else:
            with pytest.raises(ValueError, match="has id 21; expected 0 to 20"):
                label_scarce.find_horse21(str(root))


def test_bedroom28_leaves_its_background_out(tmp_path: Path) -> None:
    """The reference ignores id 0 there; with it there would be 29 classes."""
    root = public_sets.write_bedroom28(tmp_path, train=2, test=1)
    np.save(root / "real" / "train" / "image_0000000.npy", np.full((48, 48), 28))
    found = label_scarce.find_bedroom28(str(root))
    assert len(found.classes) == 28 and found.classes[0] == "bed"
    (mask,) = masks(found, "test")
    published = np.load(root / "real" / "test" / "image_0000000.npy")
    assert 0 in published and np.array_equal(mask, np.where(published == 0, 255, published - 1))
    assert (masks(found, "train")[0] == 27).all()
