"""Small folders of public data sets in their published layouts, with pictures that a head can learn from.

Segmentation: boxes on a ground, whose colour says the class. Correspondence: copies of one object a category, shifted,
so each keypoint is a spot of its own colour. Everything follows from the number of the picture.
"""

from __future__ import annotations

import colorsys
import io
import json
from collections.abc import Callable, Mapping, Sequence
from itertools import permutations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.public import cityscapes
from tests.tars import encode

Pixels = NDArray[np.uint8]
CATEGORIES = ("cat", "train")
"""Of `write_spair71k`; each has keypoints 0 to 4."""
_SPOTS = ((6, 6), (26, 6), (16, 14), (6, 22), (26, 22))
"""Keypoints (x, y) on an object of 32 x 28 pixels."""


def write_horse21(folder: Path, train: int = 4, test: int = 3, *, size: int = 48, classes: int = 4) -> Path:
    """`folder`/horse_21 with the first `classes` of its 21 classes; its path."""
    return _write_label_scarce(folder / "horse_21", train, test, size, range(classes))


def write_bedroom28(folder: Path, train: int = 4, test: int = 3, *, size: int = 48, classes: int = 4) -> Path:
    """`folder`/bedroom_28 with its background, which is not a class, and the first `classes` of 28; its path."""
    return _write_label_scarce(folder / "bedroom_28", train, test, size, range(classes + 1))


def write_ade20k(
    folder: Path,
    training: int = 4,
    validation: int = 3,
    *,
    size: tuple[int, int] = (48, 64),
    classes: int = 4,
) -> Path:
    """`folder`/ADEChallengeData2016 of JPEGs with id 0 and the first `classes` of 150 classes; its path."""
    root = folder / "ADEChallengeData2016"
    for split, short, count, seed in (
        ("training", "train", training, 0),
        ("validation", "val", validation, 1000),
    ):
        for number in range(count):
            pixels, ids = scene(seed + number, size, range(classes + 1))
            name = f"ADE_{short}_{number + 1:08d}"
            _write(root / "images" / split / f"{name}.jpg", _jpeg(pixels))
            _write(root / "annotations" / split / f"{name}.png", _png(ids))
    names = [f"{id}\t0.1\t1\t1\tthing {id}, object {id} " for id in range(1, 151)]
    _write(root / "objectInfo150.txt", "\n".join(["Idx\tRatio\tTrain\tVal\tName", *names, ""]).encode())
    return root


def write_cityscapes(
    folder: Path, train: int = 4, val: int = 3, *, size: tuple[int, int] = (48, 64), classes: int = 4
) -> Path:
    """`folder`/cityscapes with an id that is not evaluated and the first `classes` of those that are; its path."""
    root = folder / "cityscapes"
    used = [4, *list(cityscapes.EVALUATED)[:classes]]
    for split, city, count, seed in (("train", "aachen", train, 0), ("val", "lindau", val, 1000)):
        for number in range(count):
            pixels, ids = scene(seed + number, size, used)
            name = f"{city}_{number:06d}_000019"
            _write(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", _png(pixels))
            _write(root / "gtFine" / split / city / f"{name}_gtFine_labelIds.png", _png(ids))
            _write(root / "gtFine" / split / city / f"{name}_gtFine_color.png", _png(pixels))
    return root


def write_spair71k(
    folder: Path, images: Mapping[str, int] | None = None, *, size: tuple[int, int] = (60, 80)
) -> Path:
    """`folder`/SPair-71k: per split so many images a category (default 3, 2, 2), and all ordered pairs; its path."""
    root = folder / "SPair-71k"
    first = 0
    for split, count in (images or {"trn": 3, "val": 2, "test": 2}).items():
        listed: list[str] = []
        for category in CATEGORIES:
            made = {f"2008_{first + number:06d}": first + number for number in range(count)}
            known = {name: _write_object(root, category, name, number, size) for name, number in made.items()}
            for source, target in permutations(known, 2):
                name = f"{len(listed):06d}-{source}-{target}:{category}"
                pair = _pair(category, source, known[source], target, known[target])
                _write(root / "PairAnnotation" / split / f"{name}.json", json.dumps(pair).encode())
                listed.append(name)
        _write(root / "Layout" / "large" / f"{split}.txt", "\n".join([*listed, ""]).encode())
        first += count
    return root


def scene(number: int, size: tuple[int, int], ids: Sequence[int]) -> tuple[Pixels, Pixels]:
    """A picture [H, W, 3] of boxes and its ids [H, W]; the first id is the ground's."""
    rng = np.random.default_rng(number)
    height, width = size
    truth = np.full(size, ids[0], np.uint8)
    for id in rng.permutation(ids[1:]):
        top, left = rng.integers(0, (height // 2, width // 2))
        truth[top : top + height // 2, left : left + width // 3] = id
    colours = np.zeros((256, 3), np.int16)
    colours[list(ids)] = [colour(place) for place in range(len(ids))]
    noisy = colours[truth] + rng.integers(-12, 13, (height, width, 3))
    return np.clip(noisy, 0, 255).astype(np.uint8), truth


def colour(place: int) -> tuple[int, int, int]:
    """One of many that differ."""
    red, green, blue = colorsys.hsv_to_rgb(place * 0.381966 % 1, 0.8, 0.9 - 0.3 * (place % 2))
    return round(255 * red), round(255 * green), round(255 * blue)


def _write_label_scarce(root: Path, train: int, test: int, size: int, ids: range) -> Path:
    for split, count, seed in (("train", train, 0), ("test", test, 1000)):
        for number in range(count):
            pixels, truth = scene(seed + number, (size, size), ids)
            _write(root / "real" / split / f"image_{number:07d}.png", _png(pixels))
            buffer = io.BytesIO()
            np.save(buffer, truth.astype(np.int64))
            _write(root / "real" / split / f"image_{number:07d}.npy", buffer.getvalue())
    return root


def _write_object(
    root: Path, category: str, name: str, number: int, size: tuple[int, int]
) -> dict[str, list[int] | None]:
    """A picture of the category's object; its keypoints as published, one of them hidden."""
    rng = np.random.default_rng([number, CATEGORIES.index(category)])
    height, width = size
    left, top = rng.integers(0, (width - 32, height - 28))
    pixels = rng.integers(90, 140, (height, width, 3)).astype(np.uint8)
    pixels[top : top + 28, left : left + 32] = colour(5 + CATEGORIES.index(category))
    hidden = int(rng.integers(len(_SPOTS)))
    keypoints: dict[str, list[int] | None] = {}
    for id, (x, y) in enumerate(_SPOTS):
        keypoints[str(id)] = None if id == hidden else [int(left) + x, int(top) + y]
        if id != hidden:
            pixels[top + y - 3 : top + y + 4, left + x - 3 : left + x + 4] = colour(id)
    box = [int(left), int(top), int(left) + 32, int(top) + 28]
    _write(root / "JPEGImages" / category / f"{name}.jpg", _jpeg(pixels))
    document = {
        "filename": f"{name}.jpg",
        "category": category,
        "image_width": width,
        "image_height": height,
        "bndbox": box,
        "kps": keypoints,
    }
    _write(root / "ImageAnnotation" / category / f"{name}.json", json.dumps(document).encode())
    return {**keypoints, "box": box}


def _pair(
    category: str,
    source: str,
    here: Mapping[str, list[int] | None],
    target: str,
    there: Mapping[str, list[int] | None],
) -> dict[str, object]:
    """As published, of the keypoints that both images show."""
    both = [id for id in here if id != "box" and here[id] and there[id]]
    return {
        "category": category,
        "src_imname": f"{source}.jpg",
        "trg_imname": f"{target}.jpg",
        "src_bndbox": here["box"],
        "trg_bndbox": there["box"],
        "kps_ids": both,
        "src_kps": [here[id] for id in both],
        "trg_kps": [there[id] for id in both],
        "mirror": 0,
    }


def _jpeg(pixels: Pixels) -> bytes:
    return encode(Image.fromarray(pixels), "JPEG", quality=95, subsampling=0)


def _png(pixels: Pixels) -> bytes:
    return encode(Image.fromarray(pixels), "PNG")


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


WRITERS: Mapping[str, Callable[[Path], Path]] = {
    "ade20k": write_ade20k,
    "bedroom28": write_bedroom28,
    "cityscapes": write_cityscapes,
    "horse21": write_horse21,
    "spair71k": write_spair71k,
}
"""By the name of the data set."""
