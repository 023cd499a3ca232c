"""What `gatehouse shard --dataset` writes: shards with labels, and beside them what they hold.

    OUT/
      SPLIT-NNNNNN.tar      samples of one split, under its published name
      pairs-SPLIT.jsonl     correspondence: one `Pair` a line
      dataset.json          a `Dataset`; written last, so where it is, everything is

A sample is KEY.jpg or KEY.png, byte for byte as published, and its label:

    segmentation     KEY.seg.png   8-bit grey PNG of the image's own size: class ids from 0, 255 for no class
    correspondence   KEY.json      an `Annotation`

Points and boxes are in pixels of the image as published; the centre of its first pixel is (0.5, 0.5).
"""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field, model_validator

from schemas.receipts import Receipt

SCHEMA_VERSION: Final = 1
DATASET = "dataset.json"
IGNORE: Final = 255
"""Id of pixels without a class."""

PublicName = Literal["ade20k", "bedroom28", "cityscapes", "horse21", "spair71k"]
PublicTask = Literal["segmentation", "correspondence"]
Point = tuple[float, float]
"""x, y."""
Box = tuple[float, float, float, float]
"""Left, top, width, height."""


class Split(Receipt):
    """The samples of one split."""

    samples: int = Field(ge=0)
    shards: list[str]
    """File names beside `dataset.json`, in the order of their samples' keys."""
    pairs: int | None = Field(default=None, ge=0)
    """Lines of `pairs-SPLIT.jsonl`; null where the task has none."""


class Dataset(Receipt):
    """What a folder of shards with labels holds."""

    version: Literal[1] = SCHEMA_VERSION
    name: PublicName
    task: PublicTask
    classes: list[str] = Field(min_length=1)
    """Names by class id; of correspondence the categories, sorted."""
    ignore: int | None
    """Id of pixels without a class; null where labels are no masks."""
    splits: dict[str, Split]


class Annotation(Receipt):
    """KEY.json: where the parts of the object in an image are."""

    category: str
    keypoints: dict[str, Point]
    """By the keypoint's id, the same in all images of a category; those that the image shows."""
    box: Box
    """Around the object."""


class Pair(Receipt):
    """A line of pairs-SPLIT.jsonl: points of one image and where the same points are in another."""

    source: str
    """Key of a sample of the same split."""
    target: str
    category: str
    source_points: list[Point]
    target_points: list[Point]
    """In the order of the source's."""
    source_box: Box
    target_box: Box

    @model_validator(mode="after")
    def _one_to_one(self) -> Pair:
        if len(self.source_points) != len(self.target_points):
            raise ValueError(
                f"{len(self.source_points)} source points and {len(self.target_points)} target points; each needs"
                " one"
            )
        return self


def pairs_name(split: str) -> str:
    """File of a split's pairs, beside `dataset.json`."""
    return f"pairs-{split}.jsonl"
