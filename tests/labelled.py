"""A small store of pictures that a head can learn from, and the labelled shards that it was made of.

Each picture shows one square on a grey ground, red or blue, with a spot of its own colour in each corner and in the
middle. So its mask (ground, red, blue), its class (red, blue) and its keypoints (the spots) are easy to see.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from schemas.dataset import Pair, pairs_name
from schemas.head import HeadSpec
from schemas.spec import ExtractSpec
from tests.tars import encode, make_tar

SHARDS = {"train-0.tar": range(10), "train-1.tar": range(10, 16), "test-0.tar": range(16, 24)}
"""Numbers of the pictures of each; a picture's key is `key_of` its number."""
GROUPS = ["plain", "noisy"]
TAPS = ["up-level1-upsampler-out", "up-level2-upsampler-out"]
"""Their maps are 96 x 4 x 4 and 96 x 8 x 8."""
NAMES = [f"{group}/{tap}" for group in GROUPS for tap in TAPS]
ATTENTION = "plain/attn"
MASKS, IDS = ["ground", "red", "blue"], ["red", "blue"]
"""Names of the masks' classes, and of the pictures'."""
_SIDE = 28
_SPOTS = {"a": (5, 5), "b": (23, 5), "c": (5, 23), "d": (23, 23), "e": (14, 14)}
_SPOT_COLOURS = [(255, 255, 0), (0, 255, 0), (255, 0, 255), (255, 255, 255), (0, 0, 0)]

Edit = Callable[[int, dict[str, bytes]], dict[str, bytes]]


def key_of(number: int) -> str:
    """Of a picture's sample."""
    return f"picture-{number:02d}"


def members(number: int) -> dict[str, bytes]:
    """A picture and its labels, by extension."""
    height, width = size_of(number)
    left, top = corner_of(number)
    random = np.random.default_rng(number)
    pixels = random.integers(80, 130, (height, width, 3)).astype(np.uint8)
    mask = np.zeros((height, width), np.uint8)
    mask[0] = 255
    square = np.s_[top : top + _SIDE, left : left + _SIDE]
    pixels[square], mask[square] = ((220, 20, 20), 1) if number % 2 else ((20, 20, 220), 2)
    for (x, y), colour in zip(points_of(number).values(), _SPOT_COLOURS, strict=True):
        pixels[int(y) - 4 : int(y) + 4, int(x) - 4 : int(x) + 4] = colour
    return {"png": png(pixels), "seg.png": png(mask), "cls": b"0" if number % 2 else b"1"}


def size_of(number: int) -> tuple[int, int]:
    """Height and width of a picture."""
    return (48, 64) if number % 3 else (64, 48)


def corner_of(number: int) -> tuple[int, int]:
    """Left and top of a picture's square."""
    height, width = size_of(number)
    left, top = np.random.default_rng([number, 1]).integers(1, (width - _SIDE, height - _SIDE))
    return int(left), int(top)


def points_of(number: int) -> dict[str, tuple[float, float]]:
    """Spots (x, y) of a picture, in its own pixels."""
    left, top = corner_of(number)
    return {name: (float(left + x), float(top + y)) for name, (x, y) in _SPOTS.items()}


def pair_of(source: int, target: int) -> Pair:
    """Two pictures and their spots."""
    boxes = [(*map(float, corner_of(number)), float(_SIDE), float(_SIDE)) for number in (source, target)]
    return Pair(
        source=key_of(source),
        target=key_of(target),
        category=IDS[target % 2],
        source_points=list(points_of(source).values()),
        target_points=list(points_of(target).values()),
        source_box=boxes[0],
        target_box=boxes[1],
    )


def write_shards(folder: Path, edit: Edit = lambda number, members: members) -> Path:
    """All shards, each sample's members as `edit` leaves them, and pairs of pictures of one colour; the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, numbers in SHARDS.items():
        samples = [
            (f"{key_of(number)}.{field}", data)
            for number in numbers
            for field, data in edit(number, members(number)).items()
        ]
        make_tar(folder / name, samples)
    write_pairs(folder, "train", SHARDS["train-0.tar"])
    write_pairs(folder, "validation", SHARDS["train-1.tar"])
    write_pairs(folder, "test", SHARDS["test-0.tar"])
    return folder


def write_pairs(folder: Path, split: str, numbers: Iterable[int]) -> None:
    """All ordered pairs of one colour."""
    pairs = [pair_of(*two) for two in permutations(numbers, 2) if sum(two) % 2 == 0]
    text = "".join(f"{pair.model_dump_json()}\n" for pair in pairs)
    (folder / pairs_name(split)).write_text(text)


def build(folder: Path) -> None:
    """`folder/shards` and the `folder/store` of two groups extracted from them."""
    write_shards(folder / "shards")
    from jobs import endings, extract  # only where it is needed, since it brings diffusers and Ray

    document = {
        "version": 1,
        "store": str(folder / "store"),
        "input": {"shards": f"{folder}/shards/*.tar"},
        "image_size": [64, 64],
        "backbone": {"batch_size": 8},
        "groups": [
            {"name": name, "prompt": "a photo", "t": t, "taps": [*TAPS, "attn"]}
            for name, t in zip(GROUPS, (50, 300), strict=True)
        ],
        "cluster": {"device": "cpu"},
    }
    assert extract.run(ExtractSpec.model_validate(document), serial=True) == endings.DONE


TASKS: dict[str, dict[str, Any]] = {
    "label-scarce": {"members": 3, "pixels": 64, "steps": 30, "batch_size": 4},
    "segmentation": {"width": 16, "steps": 30, "batch_size": 4, "learning_rate": 3e-3},
    "classification": {"steps": 40, "batch_size": 8, "learning_rate": 3e-3},
    "correspondence": {"head": "conv", "channels": 16, "steps": 30, "batch_size": 4, "learning_rate": 3e-3},
}
"""Small ones, which learn something in a second or two."""


def spec_of(labelled: Path, out: Path, task: str = "label-scarce", /, **changes: Any) -> HeadSpec:
    """A head on the labelled store: trained on the shards of its train split, tested on those of its test split.

    `changes` replace sections of the spec; those of `task` change its default.
    """
    names = {"classification": IDS, "correspondence": None}.get(task, MASKS)
    splits: dict[str, Any] = {"type": "shards", "train": "train*", "test": "test*", "validation": 0.25}
    if task == "correspondence":
        splits |= {"train": "*train*", "validation": "*validation*", "test": "*test*"}
    document = {
        "version": 1,
        "head": str(out),
        "store": str(labelled / "store"),
        "labels": {"root": str(labelled / "shards"), "classes": names},
        "task": {"type": task, "validate_every": 10, **TASKS[task], **changes.pop("task", {})},
        "splits": splits,
        "device": "cpu",
    }
    return HeadSpec.model_validate(document | changes)


def png(values: NDArray[np.uint8]) -> bytes:
    """A picture's or a mask's file."""
    return encode(Image.fromarray(values), "PNG")


def dump(spec: HeadSpec, path: Path) -> str:
    """Write a spec as a file; its path. JSON is YAML too."""
    path.write_text(json.dumps(spec.model_dump(mode="json")))
    return str(path)
