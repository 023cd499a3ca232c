"""Segmentation: a mask beside each image, brought to class ids 0, 1, ... and 255 for no class."""

from __future__ import annotations

import io
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.public.dataset import Labelled, PublicDataset, refuse
from pipeline.public.folder import Folder
from schemas.dataset import IGNORE, PublicName

_UNKNOWN = -1


@dataclass(frozen=True)
class SplitFolders:
    """Where a split's images and masks are: a mask has its image's path below these folders, but for the suffix."""

    split: str
    images: str
    image_suffix: str
    masks: str
    mask_suffix: str


def segmentation(
    name: PublicName,
    folder: Folder,
    layout: Sequence[SplitFolders],
    classes: Sequence[str],
    meaning: Mapping[int, int],
) -> PublicDataset:
    """A data set of masks, each of which was read and checked.

    Args:
        name: of the data set.
        folder: its files.
        layout: the splits.
        classes: names by class id.
        meaning: class id, or 255, of each id that the published masks may hold.

    Raises:
        ValueError: a split without images, an image without a mask or the reverse, a mask that is damaged, of another
            size than its image, or with an id that has no meaning.
    """
    table = np.full(256, _UNKNOWN, np.int16)
    table[list(meaning)] = list(meaning.values())
    splits: dict[str, list[Labelled]] = {}
    problems: list[str] = []
    for one in layout:
        splits[one.split], lone = _paired(folder, one)
        problems += [*lone, *_bad_masks(folder, splits[one.split], table)]
    if problems:
        refuse(folder, problems, f"{sum(map(len, splits.values()))} images with masks")

    def labels(one: Labelled) -> dict[str, bytes]:
        return {"seg.png": as_png(_classes(folder.read(one.label), one.label, table))}

    return PublicDataset(name, "segmentation", list(classes), folder, splits, labels)


def as_png(ids: NDArray[np.uint8]) -> bytes:
    """A mask [H, W] as an 8-bit grey PNG."""
    buffer = io.BytesIO()
    Image.fromarray(ids).save(buffer, "PNG")
    return buffer.getvalue()


def _paired(folder: Folder, one: SplitFolders) -> tuple[list[Labelled], list[str]]:
    """Images that have a mask, and problems with the others."""
    images = _by_name(folder, one.images, one.image_suffix)
    masks = _by_name(folder, one.masks, one.mask_suffix)
    problems = [f"{folder.place(images[name])}: no mask" for name in images if name not in masks]
    problems += [f"{folder.place(masks[name])}: no image" for name in masks if name not in images]
    problems += [
        f"{folder.place(images[name])}: a dot in the name, which ends a sample's key"
        for name in images
        if "." in posixpath.basename(name)
    ]
    if not images:
        problems.append(f"{folder.place(one.images)}: no images *{one.image_suffix}")
    both = sorted(images.keys() & masks.keys())
    return [Labelled(f"{one.split}/{name}", images[name], masks[name]) for name in both], problems


def _by_name(folder: Folder, under: str, suffix: str) -> dict[str, str]:
    return {path[len(under) + 1 : -len(suffix)]: path for path in folder.files(under, suffix)}


def _bad_masks(folder: Folder, images: Sequence[Labelled], table: NDArray[np.int16]) -> Iterator[str]:
    """What is wrong with masks and with the pictures they belong to."""
    for one in images:
        try:
            size = folder.picture_size(one.image)
        except ValueError as error:
            yield f"{folder.place(one.image)}: {error}"
            continue
        try:
            ids = _classes(folder.read(one.label), one.label, table)
        except ValueError as error:
            yield f"{folder.place(one.label)}: {error}"
            continue
        if ids.shape != size:
            yield (
                f"{folder.place(one.label)}: {ids.shape[0]} x {ids.shape[1]} pixels (height x width), its image has"
                f" {size[0]} x {size[1]}"
            )


def _classes(data: bytes, path: str, table: NDArray[np.int16]) -> NDArray[np.uint8]:
    """Class ids [H, W] of a published mask. Raises ValueError where it is damaged or has an id without a meaning."""
    ids = _npy(data) if path.endswith(".npy") else _png(data)
    found = table[ids]
    if (found == _UNKNOWN).any():
        known = np.flatnonzero(table != _UNKNOWN)
        kept = [str(id) for id in known if id != IGNORE]
        raise ValueError(f"has id {ids[found == _UNKNOWN].max()}; expected {kept[0]} to {kept[-1]}")
    return found.astype(np.uint8)


def _png(data: bytes) -> NDArray[np.uint8]:
    try:
        mask = Image.open(io.BytesIO(data), formats=("PNG",))
        if mask.mode not in ("L", "P"):
            raise ValueError(f"has pixels of mode {mask.mode}; expected 8-bit grey or a palette")
        return np.asarray(mask)
    except (OSError, SyntaxError) as error:  # which PIL raises for damaged PNGs
        raise ValueError(f"is no PNG, or damaged ({error})") from error


def _npy(data: bytes) -> NDArray[np.uint8]:
    """Of any type of number, as long as the values are ids."""
    try:
        ids = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"is no array of numbers, or damaged ({error})") from error
    if not isinstance(ids, np.ndarray) or ids.ndim != 2 or ids.dtype.kind not in "uif":
        raise ValueError("is no array of numbers [H, W]")
    with np.errstate(invalid="ignore"):  # of values that no id has
        whole = ids.astype(np.uint8)
    if not np.array_equal(whole, ids):
        raise ValueError(f"has values from {ids.min()} to {ids.max()}; expected whole ids from 0 to 255")
    return whole
