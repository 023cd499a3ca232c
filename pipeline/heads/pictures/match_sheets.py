"""Pictures of matches: points of one picture, and where a head finds them in another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw

from pipeline.heads.pictures import layout
from pipeline.heads.pictures.layout import FAINT, INK, PAPER, below, beside, text, widened
from pipeline.heads.pictures.palette import Picture, palette

SIDE: Final = 384  # pixels of a picture's longer side
_FINE: Final = 3  # drawn so many times larger, then reduced, which smooths edges
_RADIUS: Final = 5.0  # pixels

Stroke = Callable[[ImageDraw.ImageDraw, tuple[float, float], str, int], None]
"""Draws a mark at a place, in a colour, with a line so many pixels wide."""


@dataclass(frozen=True)
class Pair:
    """Points in two pictures. Points are [n, 2] as (x, y) in pixels; the first pixel's centre is (0.5, 0.5)."""

    source: Picture
    target: Picture
    source_points: NDArray[np.floating]
    target_points: NDArray[np.floating]
    """Where they are."""
    predicted: NDArray[np.floating]
    """Where the head finds them."""
    right: NDArray[np.bool_]
    """[n]: near enough, by whatever threshold."""
    label: str = ""


def matches_sheet(pairs: Sequence[Pair]) -> bytes:
    """Source and target side by side, a pair a row.

    Points are numbered, each number in a colour of its own. In the target a circle is where the point is, a cross where
    it was found, and a line joins the two where that is wrong.

    Args:
        pairs: at least one.

    Returns:
        A PNG file's bytes.

    Raises:
        ValueError: a pair whose points differ in number.
    """
    titles = ["source", "target: circle = truth, cross = prediction"]
    rows = [beside([widened(text(title, FAINT, 60), SIDE) for title in titles])]
    for pair in pairs:
        _check(pair)
        found = f"{int(pair.right.sum())} of {len(pair.right)} points right"
        rows.append(text(f"{pair.label}, {found}" if pair.label else found, letters=90))
        cells = [marked(pair.source, pair.source_points, circle), _target(pair)]
        rows.append(beside([widened(cell, SIDE) for cell in cells]))
    return layout.png(below(rows, 8))


def marked(picture: Picture, points: NDArray[np.floating], stroke: Stroke) -> Image.Image:
    """A picture, enlarged, with a mark and a number at each of points [n, 2] in its pixels."""
    image, scale = _enlarged(picture)
    for place, point in enumerate(points * scale):
        _mark(image, point, _colour(place), stroke)
    return _numbered(image, points * scale)


def _target(pair: Pair) -> Image.Image:
    image, scale = _enlarged(pair.target)
    ends = zip(pair.target_points * scale, pair.predicted * scale, pair.right, strict=True)
    for place, (truth, found, is_right) in enumerate(ends):
        if not is_right:
            _line(image, truth, found, _colour(place))
        _mark(image, truth, _colour(place), circle)
        _mark(image, found, _colour(place), cross)
    return _numbered(image, pair.target_points * scale)


def _enlarged(picture: Picture) -> tuple[Image.Image, NDArray[np.float64]]:
    """To draw on, and what (x, y) are multiplied with to lie there."""
    size = layout.sized(picture, SIDE).size
    scale = np.array(size) * _FINE / (picture.shape[1], picture.shape[0])
    return layout.sized(picture, SIDE * _FINE).resize((size[0] * _FINE, size[1] * _FINE)), scale


def _numbered(image: Image.Image, points: NDArray[np.floating]) -> Image.Image:
    """At its final size, with the number of each point beside it, inside the picture."""
    image = image.reduce(_FINE)
    canvas = ImageDraw.Draw(image)
    for place, (x, y) in enumerate(points / _FINE):
        number, font = str(place + 1), layout.font()
        left = min(x + _RADIUS + 3, image.width - font.getlength(number) - 2)
        top = min(max(y - _RADIUS - 12, 0), image.height - 18)
        canvas.text((left, top), number, fill=INK, font=font, stroke_width=2, stroke_fill=PAPER)
    return image


def _mark(image: Image.Image, point: NDArray[np.floating], colour: str, stroke: Stroke) -> None:
    canvas, at = ImageDraw.Draw(image), (float(point[0]), float(point[1]))
    stroke(canvas, at, _halo(colour), 4 * _FINE)
    stroke(canvas, at, colour, 2 * _FINE)


def circle(canvas: ImageDraw.ImageDraw, at: tuple[float, float], colour: str, width: int) -> None:
    """Where a point is."""
    canvas.circle(at, _RADIUS * _FINE + width / 2, outline=colour, width=width)


def cross(canvas: ImageDraw.ImageDraw, at: tuple[float, float], colour: str, width: int) -> None:
    """Where it was found."""
    arm = _RADIUS * _FINE + width / 3
    for slope in (1, -1):
        ends = (at[0] - arm, at[1] - arm * slope, at[0] + arm, at[1] + arm * slope)
        canvas.line(ends, fill=colour, width=width)


def _line(image: Image.Image, start: NDArray[np.floating], end: NDArray[np.floating], colour: str) -> None:
    canvas, ends = ImageDraw.Draw(image), (*map(float, start), *map(float, end))
    canvas.line(ends, fill=_halo(colour), width=4 * _FINE)
    canvas.line(ends, fill=colour, width=2 * _FINE)


def _colour(place: int) -> str:
    """Of a point, by its number; the dark one stands for background elsewhere and is left out."""
    return "#" + bytes(palette(place + 2)[-1]).hex()


def _halo(colour: str) -> str:
    """What sets a mark of this colour off from any ground: light around dark colours, dark around light ones."""
    return INK if sum(ImageColor.getrgb(colour)) > 3 * 128 else PAPER


def _check(pair: Pair) -> None:
    shapes = [list(points.shape) for points in (pair.source_points, pair.target_points, pair.predicted)]
    expected = [len(pair.right), 2]
    if any(shape != expected for shape in shapes):
        raise ValueError(
            f"pair {pair.label!r} has source, target and predicted points {shapes}; each must be {expected},"
            " as `right` has a value a point"
        )
