"""Pictures side by side as a table: a column for each way they were made, a row for each image."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from itertools import zip_longest
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.gate.markup import Html, number, table, tag

Picture = NDArray[np.uint8]
"""RGB [H, W, 3]."""
Sheet = Sequence[tuple[str, Sequence[Picture]]]
"""Column titles, and the pictures below each."""
_SHOWN: Final = 112  # pixels of width on the page
_LONGEST: Final = 256
"""Pixels of the longer side that are kept, so that the page stays small: sharp enough for a dense screen."""


def grid(sheet: Sheet, label: str) -> Html:
    """The table; the first column stays in sight when the others scroll, one that is shorter ends in empty cells."""
    titles = [title for title, _ in sheet]
    rows = []
    for place, pictures in enumerate(zip_longest(*(column for _, column in sheet)), 1):
        cells = [
            _image(picture, f"{title}, image {number(place, 0)}") if picture is not None else Html("")
            for title, picture in zip(titles, pictures, strict=True)
        ]
        first, others = tag("th", cells[0], scope="row"), (tag("td", cell) for cell in cells[1:])
        rows.append(tag("tr", first, *others))
    return table(titles, rows, label, "sheet")


def _image(picture: Picture, alt: str) -> Html:
    """Small maps are kept value for value, and enlarged without smoothing."""
    height, width = picture.shape[:2]
    small = max(height, width) < _SHOWN
    image = Image.fromarray(np.ascontiguousarray(picture))
    if not small:
        image.thumbnail((_LONGEST, _LONGEST), Image.Resampling.LANCZOS)
    data = io.BytesIO()
    if small:
        image.save(data, "PNG", optimize=True)
    else:
        image.save(data, "WEBP", quality=85)
    kind = "png" if small else "webp"
    return tag(
        "img",
        src=f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}",
        alt=alt,
        width=width,
        height=height,
        class_="small" if small else None,
    )
