"""What the original shards say of a row: a mask, a class, or keypoints, in the frame that the network saw.

A kind of label names the tar extensions that it reads (`fields`) and decodes them (`decode`). What cannot be used has a
reason, as bad samples have:

    no-label             no such member, or its json has no such field
    undecodable-label    no PNG of class ids, no integer, no mapping of points; or a damaged one
    label-size           a mask of another size than its picture
    class-out-of-range   a class that is not one of 0 to classes - 1
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from io import BytesIO
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ImageFile
from PIL.PngImagePlugin import PngImageFile
from torch import Tensor

from pipeline.bad import BadSample
from pipeline.frames import Frame

IGNORE = -100
"""Of pixels that have no class, whatever the file calls them: torch's own `ignore_index`, so that a loss leaves them
out without being told."""

_PNG = b"\x89PNG\r\n\x1a\n"
_GREY, _PALETTE = 0, 3
_DEPTHS = {_GREY: (8, 16), _PALETTE: (1, 2, 4, 8)}
_MOST_CLASSES = 2**15


class BadLabel(BadSample):
    """A sample whose label cannot be used."""


@dataclass(frozen=True)
class Masks:
    """A PNG of class ids, of its picture's size: 8 or 16 bits of grey, or a palette, whose indices are the ids.

    The file is taken as it lies there: an orientation in its metadata does not count.

    Raises:
        ValueError: more than 32768 classes, or an `ignore` that is one of them.
    """

    field: str = "seg.png"
    _: KW_ONLY
    classes: int
    ignore: int = 255
    """In the file; becomes IGNORE."""

    def __post_init__(self) -> None:
        if not 1 <= self.classes <= _MOST_CLASSES:
            raise ValueError(f"{self.classes} classes of {self.field}; expected 1 to {_MOST_CLASSES}")
        if 0 <= self.ignore < self.classes:
            raise ValueError(
                f"ignore {self.ignore} is one of the {self.classes} classes of {self.field}; give an id that is none"
            )

    @property
    def fields(self) -> tuple[str, ...]:
        """Tar extensions to read."""
        return (self.field.lower(),)

    def decode(self, members: Mapping[str, bytes], frame: Frame) -> Tensor:
        """Class ids over the image, int16 [H, W]; IGNORE where there is none, as on padding.

        Raises:
            BadLabel: see above.
        """
        data = _member(members, self.fields[0])
        _check_header(data, self.field, frame)
        ids = _pixels(data, self.field)
        known = ids != self.ignore
        if (strange := ids[known & (ids >= self.classes)]).size:
            raise BadLabel(
                "class-out-of-range",
                f"{self.field} has class {strange.min()} in {strange.size} of its pixels; with {self.classes} classes,"
                f" ids are 0 to {self.classes - 1}, or {self.ignore} for none",
            )
        ids = np.where(known, ids.astype(np.int32), IGNORE)
        return torch.from_numpy(frame.resampled(ids, IGNORE))


@dataclass(frozen=True)
class ClassIds:
    """An integer: the text of a member (`cls`), or a field of the sample's json (`json:FIELD`)."""

    field: str = "cls"
    _: KW_ONLY
    classes: int

    @property
    def fields(self) -> tuple[str, ...]:
        """Tar extensions to read."""
        return (self.field.partition(":")[0].lower(),)

    def decode(self, members: Mapping[str, bytes], frame: Frame) -> Tensor:
        """The class, int64 [].

        Raises:
            BadLabel: see above.
        """
        found = _value(members, self.field)
        try:
            if isinstance(found, bool | float):
                raise ValueError
            number = int(found)
        except (TypeError, ValueError):
            raise BadLabel("undecodable-label", f"{self.field} is {found!r:.60}, not an integer") from None
        if not 0 <= number < self.classes:
            raise BadLabel(
                "class-out-of-range",
                f"{self.field} is {number}; with {self.classes} classes, ids are 0 to {self.classes - 1}",
            )
        return torch.tensor(number)


@dataclass(frozen=True)
class Points:
    """Named points of one image."""

    names: tuple[str, ...]
    xy: Tensor
    """float64 [n, 2], pixels; see `pipeline.frames`."""


@dataclass(frozen=True)
class Keypoints:
    """A mapping from names to [x, y] in the sample's json, in pixels of the picture; null for what is not seen."""

    field: str = "json:keypoints"

    @property
    def fields(self) -> tuple[str, ...]:
        """Tar extensions to read."""
        return (self.field.partition(":")[0].lower(),)

    def decode(self, members: Mapping[str, bytes], frame: Frame) -> Points:
        """Points in pixels of the image, in the file's order; those that a crop cut off lie outside of it.

        Raises:
            BadLabel: see above.
        """
        found = _value(members, self.field)
        if not isinstance(found, dict):
            raise BadLabel("undecodable-label", f"{self.field} is {found!r:.60}, not a mapping of points")
        seen = {name: point for name, point in found.items() if point is not None}
        for name, point in seen.items():
            if not _is_point(point):
                raise BadLabel("undecodable-label", f"{self.field}: {name!r} is {point!r:.60}, not [x, y]")
        points = torch.tensor(list(seen.values()), dtype=torch.float64).reshape(-1, 2)
        return Points(tuple(seen), frame.to_image(points))


Labels = Masks | ClassIds | Keypoints
Label = Tensor | Points


def _member(members: Mapping[str, bytes], field: str) -> bytes:
    if field not in members:
        raise BadLabel("no-label", f"no member {field!r}")
    return members[field]


def _value(members: Mapping[str, bytes], source: str) -> Any:
    """The text of a member, or what `json:FIELD` names."""
    extension, _, name = source.partition(":")
    data = _member(members, extension.lower())
    try:
        text = data.decode("utf-8-sig").strip()
        found = json.loads(text) if name else text
    except (ValueError, RecursionError) as error:
        raise BadLabel("undecodable-label", f"member {extension!r} cannot be read ({error})") from error
    if not name:
        return found
    if not isinstance(found, dict):
        raise BadLabel("undecodable-label", f"the json is a {type(found).__name__}, not an object")
    if found.get(name) is None:
        raise BadLabel("no-label", f"the json has no field {name!r}")
    return found[name]


def _check_header(data: bytes, field: str, frame: Frame) -> None:
    """Size and kind are known from a PNG's first 26 bytes, before anything is decoded."""
    if not data.startswith(_PNG) or len(data) < 26:
        raise BadLabel("undecodable-label", f"{field} starts with {data[:8]!r}, which is no PNG")
    width, height = (int.from_bytes(data[start : start + 4], "big") for start in (16, 20))
    depth, kind = data[24], data[25]
    if depth not in _DEPTHS.get(kind, ()):
        raise BadLabel(
            "undecodable-label",
            f"{field} is a PNG of colour type {kind} with {depth} bits; class ids are grey with 8 or 16 bits, or a"
            " palette",
        )
    if (height, width) != tuple(frame.picture):
        raise BadLabel(
            "label-size",
            f"{field} has {height} x {width} pixels (height x width), its picture"
            f" {frame.picture[0]} x {frame.picture[1]}",
        )


def _pixels(data: bytes, field: str) -> NDArray[np.integer]:
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise RuntimeError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set, so the missing part of a mask would become class 0; unset it"
        )
    try:
        image = PngImageFile(BytesIO(data))
        image.load()
        return np.asarray(image)
    except MemoryError:
        raise
    except Exception as error:  # hostile bytes make PIL raise almost anything
        raise BadLabel(
            "undecodable-label", f"{field}: {len(data)} bytes: {error or type(error).__name__}"
        ) from error


def _is_point(point: Any) -> bool:
    try:
        return (
            isinstance(point, list)
            and len(point) == 2
            and all(isinstance(one, int | float) and math.isfinite(one) for one in point)
        )
    except OverflowError:  # an integer that no float holds
        return False
