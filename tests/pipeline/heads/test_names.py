from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.heads.names import class_names
from schemas.dataset import DATASET, Dataset, Split
from schemas.head import Labels


def labels(root: Path | str, classes: int | list[str] | None = None) -> Labels:
    return Labels(root=str(root), classes=classes)


def test_names_of_the_spec_come_first(tmp_path: Path) -> None:
    (tmp_path / DATASET).write_text("never read")
    assert class_names(labels(tmp_path, ["one", "two"])) == ("one", "two")
    assert class_names(labels(tmp_path, 3)) == ("class 0", "class 1", "class 2")


def test_names_beside_the_shards(tmp_path: Path) -> None:
    about = Dataset(
        name="horse21",
        task="segmentation",
        classes=["ground", "horse"],
        ignore=255,
        splits={"train": Split(samples=1, shards=["train-000000.tar"])},
    )
    (tmp_path / DATASET).write_bytes(about.to_bytes())
    assert class_names(labels(tmp_path)) == ("ground", "horse")


def test_nothing_says_what_the_classes_are(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "none", "embedded"):
        with pytest.raises(
            ValueError, match=r"labels\.classes is not given, and .* has no dataset\.json; give"
        ):
            class_names(labels(root))


def test_a_description_that_is_none(tmp_path: Path) -> None:
    (tmp_path / DATASET).write_text('{"classes": ["one"]}')
    with pytest.raises(
        ValueError, match=r"dataset\.json is not what .* writes \(Field required\); give labels\.classes"
    ):
        class_names(labels(tmp_path))


def test_two_classes_of_one_name(tmp_path: Path) -> None:
    """Their scores would be one entry of the result."""
    with pytest.raises(ValueError, match=r"classes 1 and 3 are both 'leg'"):
        class_names(labels(tmp_path, ["head", "leg", "tail", "leg"]))
