"""What a picture's bytes show."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor


def pixels(data: bytes) -> NDArray[np.uint8]:
    """RGB [H, W, 3] of a PNG file's bytes."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def count(shown: NDArray[np.uint8], colour: str | tuple[int, ...]) -> int:
    """How many pixels have just this colour."""
    wanted = ImageColor.getrgb(colour)[:3] if isinstance(colour, str) else colour
    return int((shown == np.array(wanted, np.uint8)).all(-1).sum())


def uprights(shown: NDArray[np.uint8], colour: str, length: int) -> NDArray[np.intp]:
    """Columns with at least so many pixels of about this colour, as upright lines have."""
    distance = np.abs(shown.astype(int) - ImageColor.getrgb(colour)[:3]).max(-1)
    return np.flatnonzero((distance < 30).sum(0) >= length)


def has_margin(shown: NDArray[np.uint8], width: int = 5) -> bool:
    """Whether there is only paper along all four sides: what is cut reaches one."""
    inner = np.zeros(shown.shape[:2], bool)
    inner[width:-width, width:-width] = True
    return bool((shown[~inner] == 255).all())
