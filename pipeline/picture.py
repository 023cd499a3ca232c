"""A grid of small pictures with labels that never overlap and are never cut, whatever their length."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

_INK, _FAINT, _EMPTY, _PAPER = "#1a1a1a", "#6b6b6b", "#eeeeee", "#ffffff"
_MARGIN, _GAP, _GROUP_GAP = 20, 6, 24  # pixels
_LABEL_WIDTH = 150
_WIDEST = 5000  # pixels of all cells; with very many columns cells get smaller
_CELL = (64, 168)  # least and greatest longer side of a cell
_FONT_SIZE = 13


@dataclass(frozen=True)
class Column:
    """One kind of cell, one for each row."""

    group: str
    """Heading over neighbouring columns that share it; may be empty."""
    title: str
    note: str
    cells: Sequence[NDArray[np.uint8] | None]
    """[h, w, 3] each; None stays empty."""


@dataclass(frozen=True)
class Label:
    """Of a row."""

    title: str
    note: str


@dataclass(frozen=True)
class _Text:
    """Lines that fit a width."""

    lines: list[tuple[str, str]]
    """Text and colour."""

    @property
    def height(self) -> int:
        return _LINE * len(self.lines)

    def draw(self, canvas: ImageDraw.ImageDraw, x: int, y: int) -> None:
        for place, (text, colour) in enumerate(self.lines):
            canvas.text((x, y + place * _LINE), text, fill=colour, font=_FONT)


_FONT = ImageFont.load_default(_FONT_SIZE)
_LINE = _FONT_SIZE + 4


def draw(
    columns: Sequence[Column], labels: Sequence[Label], notes: dict[str, str], aspect: float
) -> Image.Image:
    """The grid.

    Args:
        columns: those of one group side by side.
        labels: of the rows.
        notes: more to say of a group.
        aspect: height of a cell by its width; cells are stretched to it, each value a rectangle of its own.
    """
    width, height = _cell_size(len(columns), aspect)
    groups = [(name, list(members)) for name, members in groupby(columns, key=lambda column: column.group)]
    spans = [len(members) * (width + _GAP) - _GAP for _, members in groups]
    lefts = [_MARGIN + _LABEL_WIDTH + _GROUP_GAP]
    for span in spans:
        lefts.append(lefts[-1] + span + _GROUP_GAP)
    headings = [_text(name, notes.get(name, ""), span) for (name, _), span in zip(groups, spans, strict=True)]
    titles = [[_text(one.title, one.note, width) for one in members] for _, members in groups]
    sides = [_text(label.title, label.note, _LABEL_WIDTH) for label in labels]

    rule = _MARGIN + max(heading.height for heading in headings) + 4
    top = rule + 6
    first = top + max(title.height for members in titles for title in members) + 6
    tops = [first]
    for side in sides:
        tops.append(tops[-1] + max(height, side.height) + _GAP)

    image = Image.new("RGB", (lefts[-1] - _GROUP_GAP + _MARGIN, tops[-1] - _GAP + _MARGIN), _PAPER)
    canvas = ImageDraw.Draw(image)
    for side, y in zip(sides, tops, strict=False):
        side.draw(canvas, _MARGIN, y)
    for (name, members), heading, texts, left, span in zip(
        groups, headings, titles, lefts, spans, strict=False
    ):
        heading.draw(canvas, left, _MARGIN)
        if name:
            canvas.line((left, rule, left + span - 1, rule), fill=_FAINT)
        for place, (column, title) in enumerate(zip(members, texts, strict=True)):
            x = left + place * (width + _GAP)
            title.draw(canvas, x, top)
            for cell, y in zip(column.cells, tops, strict=False):
                image.paste(_enlarged(cell, width, height), (x, y))
    return image


def _cell_size(columns: int, aspect: float) -> tuple[int, int]:
    """Width and height."""
    least, greatest = _CELL
    longer = min(greatest, max(least, _WIDEST // columns))
    return round(longer / max(1.0, aspect)), round(longer * min(1.0, aspect))


def _enlarged(cell: NDArray[np.uint8] | None, width: int, height: int) -> Image.Image:
    if cell is None:
        return Image.new("RGB", (width, height), _EMPTY)
    small = cell.shape[0] <= height and cell.shape[1] <= width
    return Image.fromarray(cell).resize(
        (width, height), Image.Resampling.NEAREST if small else Image.Resampling.BOX
    )


def _text(title: str, note: str, width: int) -> _Text:
    lines = [(line, _INK) for line in _wrapped(title, width)]
    return _Text(lines + [(line, _FAINT) for line in _wrapped(note, width)])


def _wrapped(text: str, width: int) -> list[str]:
    """Lines no wider than `width` pixels, broken after spaces and punctuation, else anywhere."""
    lines = [""]
    for word in re.findall(r"[\w.]+[^\w.]*|[^\w.]+", "".join(map(_printable, text))):
        if _fits(lines[-1] + word.rstrip(), width):
            lines[-1] += word
            continue
        if lines[-1]:
            lines.append("")
        for character in word:
            if lines[-1] and not _fits(lines[-1] + character, width):
                lines.append("")
            lines[-1] += character
    return [line.rstrip() for line in lines if line.strip()]


def _printable(character: str) -> str:
    """Escaped where the font has no letter for it."""
    known = character.isprintable() and ord(character) < 0x250
    return character if known else character.encode("unicode_escape", "surrogatepass").decode()


def _fits(line: str, width: int) -> bool:
    return _FONT.getlength(line) <= width
