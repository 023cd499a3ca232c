"""Labels are checked before anything is trained: a bad one is named by shard and key, or left out and counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import FeatureStore
from pipeline.heads.choice import choose
from pipeline.heads.examples import ExampleSet, labelled_rows
from tests.labelled import IDS, MASKS, NAMES, SHARDS, key_of, png, spec_of, write_shards

BAD = 11
"""In train-1.tar."""
WRONG = {
    "no-label": None,
    "undecodable-label": b"\x89PNG\r\n\x1a\n and no more",
    "label-size": png(np.zeros((10, 12), np.uint8)),
    "class-out-of-range": png(np.full((48, 64), len(MASKS), np.uint8)),
}


def examples(labelled: Path, task: str = "segmentation", /, **changes: Any) -> ExampleSet:
    spec = spec_of(labelled, Path("unused"), task, **changes)
    store = FeatureStore(spec.store)
    choice = choose(store, spec.features, pooled=task == "classification")
    assert isinstance(spec.labels.classes, list)
    return labelled_rows(store, choice, spec, len(spec.labels.classes))


def labels(root: Path, **changes: Any) -> dict[str, Any]:
    return {"root": str(root), "classes": MASKS, **changes}


def relabelled(folder: Path, data: bytes | None, field: str = "seg.png", numbers: Any = (BAD,)) -> Path:
    """Shards whose label of some pictures is another, or none."""

    def edit(number: int, members: dict[str, bytes]) -> dict[str, bytes]:
        if number in numbers:
            del members[field]
            members |= {} if data is None else {field: data}
        return members

    return write_shards(folder, edit)


def test_rows_with_features_and_masks(labelled: Path) -> None:
    found = examples(labelled)
    assert found.ids == [f"{shard}/{key_of(number)}" for shard in sorted(SHARDS) for number in SHARDS[shard]]
    assert found.shards == [shard for shard in sorted(SHARDS) for _ in SHARDS[shard]]
    assert not found.skipped
    item = found.served[0]
    assert set(NAMES) < set(item) and item["label"].shape == (64, 64)


def test_rows_with_pooled_vectors_and_classes(labelled: Path) -> None:
    found = examples(labelled, "classification")
    assert {tuple(found.served[place][NAMES[0]].shape) for place in range(len(found))} == {(96, 1, 1)}
    known = {key_of(number): 0 if number % 2 else 1 for numbers in SHARDS.values() for number in numbers}
    assert {item["key"]: int(item["label"]) for item in found.served.__getitems__(range(24))} == known


def test_a_class_in_the_samples_json(labelled: Path, tmp_path: Path) -> None:
    root = write_shards(
        tmp_path, lambda number, members: {"png": members["png"], "json": b'{"kind": %d}' % (number % 2)}
    )
    spec = {"root": str(root), "classes": IDS, "field": "json:kind"}
    found = examples(labelled, "classification", labels=spec)
    assert int(found.served[0]["label"]) == 0 and len(found) == 24  # picture 16 comes first


@pytest.mark.parametrize("reason", WRONG)
def test_a_bad_mask_is_named_or_left_out(labelled: Path, tmp_path: Path, reason: str) -> None:
    root = relabelled(tmp_path, WRONG[reason])
    message = (
        rf"1 of 24 labels under .* cannot be used \(1 {reason}\); the first: {reason}: train-1\.tar: sample"
    )
    with pytest.raises(ValueError, match=f"{message} 'picture-11'.*labels.bad: skip to leave such rows out"):
        examples(labelled, labels=labels(root))
    found = examples(labelled, labels=labels(root, bad="skip"))
    assert found.skipped == {reason: 1}
    assert len(found) == len(found.served) == len(found.ids) == len(found.shards) == 23
    assert f"train-1.tar/{key_of(BAD)}" not in found.ids
    assert [item["key"] for item in found.served.__getitems__(range(23))] == [
        id.partition("/")[2] for id in found.ids
    ]


def test_a_bad_class_is_named_or_left_out(labelled: Path, tmp_path: Path) -> None:
    root = relabelled(tmp_path, b"2", "cls")
    with pytest.raises(
        ValueError, match=r"class-out-of-range: train-1\.tar: sample 'picture-11': cls is 2; with 2"
    ):
        examples(labelled, "classification", labels=labels(root, classes=IDS))
    found = examples(labelled, "classification", labels=labels(root, classes=IDS, bad="skip"))
    assert (len(found), found.skipped) == (23, {"class-out-of-range": 1})


def test_no_label_at_all(labelled: Path, tmp_path: Path) -> None:
    """Skipping everything is not a small head but a wrong spec."""
    root = relabelled(tmp_path, None, numbers=range(24))
    with pytest.raises(
        ValueError, match=r"no row with a label: no-label: .*'picture-16': no member 'seg\.png'"
    ):
        examples(labelled, labels=labels(root, bad="skip"))


def test_samples_and_shards_that_are_not_there(labelled: Path, tmp_path: Path) -> None:
    """Another root than the right one is not a matter of single labels, so it is never skipped."""
    write_shards(tmp_path, lambda number, members: {} if number == BAD else members)
    with pytest.raises(
        ValueError, match=r"labels\.root: .*: shard 'train-1\.tar' has no sample 'picture-11'"
    ):
        examples(labelled, labels=labels(tmp_path, bad="skip"))
    (tmp_path / "train-1.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no shard 'train-1\.tar'; give the folder"):
        examples(labelled, labels=labels(tmp_path, bad="skip"))


def test_the_digest_is_of_labels_not_of_places(labelled: Path, tmp_path: Path) -> None:
    """It tells a head whose labels were changed from one whose shards have moved."""
    here = examples(labelled)
    moved = examples(labelled, labels=labels(write_shards(tmp_path / "moved")))
    assert here.digest == moved.digest
    other = relabelled(tmp_path / "other", png(np.ones((48, 64), np.uint8)))
    assert examples(labelled, labels=labels(other)).digest != here.digest
    fewer = relabelled(tmp_path / "fewer", None)
    assert examples(labelled, labels=labels(fewer, bad="skip")).digest != here.digest
