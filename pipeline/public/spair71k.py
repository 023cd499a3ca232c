"""SPair-71k: pairs of images of one category, with points that show the same part of an object.

The folder of SPair-71k.tar.gz:

    SPair-71k/
      JPEGImages/CATEGORY/IMAGE.jpg
      ImageAnnotation/CATEGORY/IMAGE.json                    the object's box and keypoints
      PairAnnotation/{trn,val,test}/PAIR.json                points that both images show
      Layout/large/{trn,val,test}.txt                        names of the pairs, `NUMBER-SOURCE-TARGET:CATEGORY`

Published: 53340, 5384 and 12234 pairs of 1800 images in 18 categories. Layout/small, a part of these, is not read.

Points are published as places of pixels, from 0, and get 0.5 added. A published box is [left, top, right, bottom]; its
width here is right - left, as the longer side is taken in the usual evaluation (PCK). An image lies in the shards of
each split that has a pair with it, once in each: a split is whole by itself. Images without a pair are left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, TypeVar

from pydantic import BaseModel, Field, ValidationError

from pipeline.public.dataset import Labelled, PublicDataset, refuse
from pipeline.public.folder import Folder
from schemas.dataset import Annotation, Box, Pair, Point

SPLITS = ("trn", "val", "test")
_LAYOUT = "Layout/large"
_PARTS = [
    "JPEGImages",
    "ImageAnnotation",
    *(f"PairAnnotation/{split}" for split in SPLITS),
    *(f"{_LAYOUT}/{split}.txt" for split in SPLITS),
]
Corners = Annotated[list[float], Field(min_length=4, max_length=4)]
Category = Annotated[str, Field(pattern=r"^[^./]+$")]
ImageName = Annotated[str, Field(pattern=r"^[^./]+\.jpg$")]

_File = TypeVar("_File", bound=BaseModel)


class _PairFile(BaseModel):
    """What is read of PAIR.json."""

    category: Category
    src_imname: ImageName
    trg_imname: ImageName
    src_kps: list[Point]
    trg_kps: list[Point]
    src_bndbox: Corners
    trg_bndbox: Corners


class _ImageFile(BaseModel):
    """What is read of IMAGE.json."""

    image_width: int
    image_height: int
    bndbox: Corners
    kps: dict[str, Point | None]


def find(url: str) -> PublicDataset:
    """SPair-71k in a folder, or in the folder that holds it.

    Raises:
        ValueError: a split without pairs, a pair that is missing, damaged or names an image that is not there, an image
            without an annotation, or of another size than its annotation says.
    """
    folder = Folder(url, "SPair-71k", _PARTS)
    problems: list[str] = []
    pairs: dict[str, list[bytes]] = {}
    splits: dict[str, list[Labelled]] = {}
    for split in SPLITS:
        pairs[split], splits[split] = _split(folder, split, problems)
    labels = dict(_annotations(folder, splits, problems))
    if problems:
        refuse(folder, problems, f"{sum(map(len, pairs.values()))} pairs of {len(labels)} images")
    categories = {image.split("/")[1] for image in labels}
    return PublicDataset(
        "spair71k",
        "correspondence",
        sorted(categories),
        folder,
        splits,
        lambda one: {"json": labels[one.image]},
        pairs,
        _notes(splits),
    )


def _split(folder: Folder, split: str, problems: list[str]) -> tuple[list[bytes], list[Labelled]]:
    """Pairs in the published order, each as a line, and the images that they name. Adds what is wrong to `problems`."""
    layout = f"{_LAYOUT}/{split}.txt"
    listed = folder.read(layout).decode().split()
    if not listed:
        problems.append(f"{folder.place(layout)}: no pairs")
    lines: list[bytes] = []
    names: set[str] = set()
    for name in listed:
        path = f"PairAnnotation/{split}/{name}.json"
        try:
            pair = _pair(folder, split, path)
        except ValueError as error:
            problems.append(f"{folder.place(path)}: {error}")
            continue
        lines.append(pair.model_dump_json().encode())
        names |= {pair.source.removeprefix(f"{split}/"), pair.target.removeprefix(f"{split}/")}
    images = [
        Labelled(f"{split}/{name}", f"JPEGImages/{name}.jpg", f"ImageAnnotation/{name}.json")
        for name in sorted(names)
    ]
    return lines, images


def _pair(folder: Folder, split: str, path: str) -> Pair:
    """A pair as it is written. Raises ValueError where it cannot be used."""
    if path not in folder:
        raise ValueError("no such file, though the layout lists it")
    found = _parsed(_PairFile, folder.read(path))
    for name in (found.src_imname, found.trg_imname):
        if (image := f"JPEGImages/{found.category}/{name}") not in folder:
            raise ValueError(f"names the image {image}, which is not there")
    if len(found.src_kps) != len(found.trg_kps):
        raise ValueError(
            f"has {len(found.src_kps)} points in the source and {len(found.trg_kps)} in the target"
        )
    return Pair(
        source=f"{split}/{found.category}/{found.src_imname.removesuffix('.jpg')}",
        target=f"{split}/{found.category}/{found.trg_imname.removesuffix('.jpg')}",
        category=found.category,
        source_points=[_centre(point) for point in found.src_kps],
        target_points=[_centre(point) for point in found.trg_kps],
        source_box=_box(found.src_bndbox),
        target_box=_box(found.trg_bndbox),
    )


def _annotations(
    folder: Folder, splits: Mapping[str, Sequence[Labelled]], problems: list[str]
) -> Iterator[tuple[str, bytes]]:
    """Path and `Annotation` of each image. Adds what is wrong to `problems`."""
    for image, label in {one.image: one.label for images in splits.values() for one in images}.items():
        try:
            yield image, _annotation(folder, image, label)
        except ValueError as error:
            problems.append(f"{folder.place(label)}: {error}")


def _annotation(folder: Folder, image: str, label: str) -> bytes:
    """An image's annotation as it is written. Raises ValueError where it cannot be used."""
    if label not in folder:
        raise ValueError("no such file, though its image is there")
    found = _parsed(_ImageFile, folder.read(label))
    height, width = folder.picture_size(image)
    if (found.image_height, found.image_width) != (height, width):
        raise ValueError(
            f"speaks of {found.image_height} x {found.image_width} pixels (height x width), its image has {height} x"
            f" {width}"
        )
    seen = {id: _centre(point) for id, point in found.kps.items() if point is not None}
    annotation = Annotation(category=label.split("/")[1], keypoints=seen, box=_box(found.bndbox))
    return annotation.model_dump_json().encode()


def _notes(splits: Mapping[str, Sequence[Labelled]]) -> list[str]:
    """On images of several splits, which teach a head what it is tested on."""
    used = Counter(one.image for images in splits.values() for one in images)
    shared = [image for image, count in used.items() if count > 1]
    return [f"{len(shared)} images are in several splits, as {shared[0]}"] if shared else []


def _centre(point: Point) -> Point:
    x, y = point
    return (x + 0.5, y + 0.5)


def _box(corners: Sequence[float]) -> Box:
    left, top, right, bottom = corners
    return (left, top, right - left, bottom - top)


def _parsed(model: type[_File], data: bytes) -> _File:
    """Raises ValueError, in one line."""
    try:
        return model.model_validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(step) for step in first["loc"])
        raise ValueError(f"{place}: {first['msg']}" if place else first["msg"]) from error
