"""Pairs and keypoints of SPair-71k, and what is wrong with a copy of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.public import spair71k
from pipeline.public.dataset import PublicDataset
from schemas.dataset import Annotation, Pair
from tests.public_sets import colour, write_spair71k
from tests.tars import jpeg


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_spair71k(tmp_path)


def labels(found: PublicDataset, split: str) -> dict[str, Annotation]:
    samples = [found.sample(one) for one in found.splits[split]]
    return {sample["__key__"]: Annotation.model_validate_json(sample["json"]) for sample in samples}


def pairs(found: PublicDataset, split: str) -> list[Pair]:
    return [Pair.model_validate_json(line) for line in found.pairs[split]]


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_what_is_found(root: Path) -> None:
    found = spair71k.find(str(root))
    assert {split: len(images) for split, images in found.splits.items()} == {"trn": 6, "val": 4, "test": 4}
    assert {split: len(lines) for split, lines in found.pairs.items()} == {"trn": 12, "val": 4, "test": 4}
    assert found.classes == ["cat", "train"]
    assert [one.key for one in found.splits["val"]] == [
        "val/cat/2008_000003",
        "val/cat/2008_000004",
        "val/train/2008_000003",
        "val/train/2008_000004",
    ]
    assert found.notes == []


def test_points_are_centres_of_pixels(root: Path) -> None:
    """The picture shows each keypoint's colour there, and a published place of a pixel is 0.5 less."""
    found = spair71k.find(str(root))
    for one in found.splits["trn"]:
        annotation = labels(found, "trn")[one.key]
        published = json.loads((root / one.label).read_text())
        pixels = np.asarray(Image.open(root / one.image)).astype(int)
        assert len(annotation.keypoints) == 4  # of five, one is hidden
        for id, (x, y) in annotation.keypoints.items():
            assert [x - 0.5, y - 0.5] == published["kps"][id]
            assert np.abs(pixels[int(y), int(x)] - colour(int(id))).max() < 30
        left, top, width, height = annotation.box
        assert [left, top, left + width, top + height] == published["bndbox"]


def test_pairs_tell_where_points_go(root: Path) -> None:
    found = spair71k.find(str(root))
    known = labels(found, "trn")
    for pair in pairs(found, "trn"):
        here, there = known[pair.source], known[pair.target]
        both = [id for id in here.keypoints if id in there.keypoints]
        assert pair.source_points == [here.keypoints[id] for id in both]
        assert pair.target_points == [there.keypoints[id] for id in both]
        assert (pair.source_box, pair.target_box) == (here.box, there.box)
        assert {pair.category} == {here.category, there.category}


def test_pairs_keep_their_order(root: Path) -> None:
    """Of the layout, not of file names, so that the first n are the same as elsewhere."""
    layout = root / "Layout" / "large" / "test.txt"
    names = layout.read_text().split()
    layout.write_text("\n".join(reversed(names)))
    keys = [(pair.source, pair.target) for pair in pairs(spair71k.find(str(root)), "test")]
    layout.write_text("\n".join(names))
    assert keys == [(pair.source, pair.target) for pair in pairs(spair71k.find(str(root)), "test")][::-1]


def test_an_image_of_two_splits_is_in_both(root: Path) -> None:
    name = (root / "Layout" / "large" / "trn.txt").read_text().split()[0]
    data = (root / "PairAnnotation" / "trn" / f"{name}.json").read_bytes()
    (root / "PairAnnotation" / "test" / f"{name}.json").write_bytes(data)
    with (root / "Layout" / "large" / "test.txt").open("a") as layout:
        layout.write(f"{name}\n")
    found = spair71k.find(str(root))
    assert found.notes == ["2 images are in several splits, as JPEGImages/cat/2008_000000.jpg"]
    assert {"test/cat/2008_000000", "test/cat/2008_000001"} < set(labels(found, "test"))
    assert pairs(found, "test")[-1].source == "test/cat/2008_000000"
    assert "trn/cat/2008_000000" in labels(found, "trn")


def _first(root: Path, folder: str) -> Path:
    return min((root / folder).rglob("*.*"))


DAMAGES: list[tuple[Callable[[Path], object], str]] = [
    (
        lambda root: _first(root, "PairAnnotation/val").unlink(),
        r"val/000000-\S+:cat\.json: no such file, though",
    ),
    (lambda root: _first(root, "PairAnnotation/val").write_text("{"), r"val/000000-\S+: Invalid JSON"),
    (
        lambda root: edit(_first(root, "PairAnnotation/val"), src_kps=[[1, 2]]),
        r"val/000000-\S+: has 1 points in the source and \d in the target",
    ),
    (
        lambda root: edit(_first(root, "PairAnnotation/val"), trg_imname="2009_1.jpg"),
        r"val/000000-\S+: names the image JPEGImages/cat/2009_1\.jpg, which is not there",
    ),
    (
        lambda root: edit(_first(root, "PairAnnotation/val"), trg_imname="../dog/2009_1.jpg"),
        r"val/000000-\S+: trg_imname: String should match pattern",
    ),
    (
        lambda root: edit(_first(root, "ImageAnnotation"), kps={"0": [1]}),
        r"cat/2008_000000\.json: kps\.0\.1: Field",
    ),
    (
        lambda root: _first(root, "ImageAnnotation").unlink(),
        r"cat/2008_000000\.json: no such file, though its image",
    ),
    (
        lambda root: _first(root, "JPEGImages").write_bytes(jpeg(9, 8)),
        r"cat/2008_000000\.json: speaks of 60 x 80 pixels .* its image has 9 x 8",
    ),
    (lambda root: (root / "Layout/large/val.txt").write_text("\n"), r"Layout/large/val\.txt: no pairs"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_what_cannot_be_used_is_named(root: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(root)
    with pytest.raises(
        ValueError, match=rf"SPair-71k: 1 problems with \d+ pairs of \d+ images: \S*{message}"
    ):
        spair71k.find(str(root))


def test_an_image_that_is_gone_is_counted_by_pairs(root: Path) -> None:
    _first(root, "JPEGImages").unlink()
    with pytest.raises(
        ValueError, match=r"4 problems with .*JPEGImages/cat/2008_000000\.jpg, which is not there"
    ):
        spair71k.find(str(root))
