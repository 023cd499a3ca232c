"""Pictures made of pictures and words: a piece is as large as what it shows, so that nothing is cut or overlaps.

The letters are those of matplotlib's own font, which comes with it and knows most alphabets.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Final

import matplotlib
import numpy as np
from matplotlib.font_manager import get_font
from PIL import Image, ImageDraw, ImageFont

from pipeline.heads.pictures.palette import Mask, Picture

INK: Final = "#1c1e21"
FAINT: Final = "#555b63"
PAPER: Final = "#ffffff"
GOOD: Final = "#0c6b3d"
BAD: Final = "#b3261e"
SIDE: Final = 256
"""Pixels of the longer side of a picture on a sheet."""
_FONT_FILE: Final = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
_FONT_SIZE: Final = 13
_LINE_HEIGHT: Final = 17


def text(words: str, colour: str = INK, letters: int = 36) -> Image.Image:
    """Words in lines of at most so many letters."""
    lines = textwrap.wrap(printable(words), letters) or [" "]
    return below([_line(line, colour) for line in lines], 0)


def swatch(colour: tuple[int, int, int], width: int = 14, height: int = 14) -> Image.Image:
    return Image.new("RGB", (width, height), colour)


def beside(pieces: Sequence[Image.Image], gap: int = 6) -> Image.Image:
    """From left to right, their tops at one height."""
    size = (
        sum(piece.width for piece in pieces) + gap * (len(pieces) - 1),
        max(piece.height for piece in pieces),
    )
    image, x = Image.new("RGB", size, PAPER), 0
    for piece in pieces:
        image.paste(piece, (x, 0))
        x += piece.width + gap
    return image


def below(pieces: Sequence[Image.Image], gap: int = 6) -> Image.Image:
    """From top to bottom, their left sides in line."""
    size = (
        max(piece.width for piece in pieces),
        sum(piece.height for piece in pieces) + gap * (len(pieces) - 1),
    )
    image, y = Image.new("RGB", size, PAPER), 0
    for piece in pieces:
        image.paste(piece, (0, y))
        y += piece.height + gap
    return image


def widened(piece: Image.Image, width: int) -> Image.Image:
    """With paper to its right, so that what follows begins at `width`; a wider piece stays as it is."""
    return (
        beside([piece, Image.new("RGB", (width - piece.width, 1), PAPER)], 0)
        if piece.width < width
        else piece
    )


def flowing(pieces: Sequence[Image.Image], width: int, gap: int = 18) -> Image.Image:
    """Small pieces in columns of one width, as many as fit, filled from top to bottom."""
    widest = max(piece.width for piece in pieces)
    columns = max(1, min(len(pieces), (width + gap) // (widest + gap)))
    length = -(-len(pieces) // columns)
    parts = [pieces[first : first + length] for first in range(0, len(pieces), length)]
    return beside([widened(below(part, 4), widest) for part in parts], gap)


def legend(entries: Sequence[tuple[tuple[int, int, int], str]], width: int) -> Image.Image:
    """Colours with their names, in columns."""
    return flowing([beside([swatch(colour), text(name)]) for colour, name in entries], width)


def sized(picture: Picture, side: int = SIDE) -> Image.Image:
    """A picture with its longer side of `side` pixels; a small one is enlarged value for value."""
    size = _size(picture.shape[0], picture.shape[1], side)
    small = size[0] >= picture.shape[1]
    image = Image.fromarray(np.ascontiguousarray(picture))
    return image.resize(size, Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS)


def sized_mask(mask: Mask, side: int = SIDE) -> Mask:
    """A mask at the same size as a picture from `sized`: each pixel takes the id at its centre."""
    width, height = _size(mask.shape[0], mask.shape[1], side)
    rows = (2 * np.arange(height) + 1) * mask.shape[0] // (2 * height)
    columns = (2 * np.arange(width) + 1) * mask.shape[1] // (2 * width)
    return mask[np.ix_(rows, columns)]


def png(image: Image.Image, margin: int = 14) -> bytes:
    """The bytes of a file, the same for the same picture, with paper all around."""
    whole = Image.new("RGB", (image.width + 2 * margin, image.height + 2 * margin), PAPER)
    whole.paste(image, (margin, margin))
    data = io.BytesIO()
    whole.save(data, "PNG")
    return data.getvalue()


def printable(words: str) -> str:
    """Escaped where the font has no letter."""
    return "".join(
        letter if letter.isprintable() and ord(letter) in _letters() else ascii(letter)[1:-1]
        for letter in words
    )


def _line(words: str, colour: str) -> Image.Image:
    """As high as a line of Latin letters, or higher where marks stand out above or below."""
    left, top, right, bottom = font().getbbox(words)
    x, y = max(0, -math.floor(left)), max(0, -math.floor(top))
    size = (x + max(1, math.ceil(right)), y + max(_LINE_HEIGHT, math.ceil(bottom)))
    image = Image.new("RGB", size, PAPER)
    ImageDraw.Draw(image).text((x, y), words, fill=colour, font=font())
    return image


def _size(height: int, width: int, side: int) -> tuple[int, int]:
    """Width and height."""
    longer = max(height, width)
    return max(1, round(width * side / longer)), max(1, round(height * side / longer))


@cache
def font() -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(_FONT_FILE, _FONT_SIZE)


@cache
def _letters() -> frozenset[int]:
    return frozenset(get_font(str(_FONT_FILE)).get_charmap())
