"""The grid's labels, at any length, and its cells, value for value."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pipeline import picture
from pipeline.picture import Column, Label, draw

Boxes = list[tuple[float, float, float, float]]


def cells(count: int, h: int = 2, w: int = 2) -> list[NDArray[np.uint8] | None]:
    rng = np.random.default_rng(count)
    return [rng.integers(0, 200, (h, w, 3), dtype=np.uint8) for _ in range(count)]


@pytest.fixture
def boxes(monkeypatch: pytest.MonkeyPatch) -> Boxes:
    """Where text and cells were drawn: left, top, right, bottom."""
    found: Boxes = []
    text, paste = ImageDraw.ImageDraw.text, Image.Image.paste

    def spy_text(self: ImageDraw.ImageDraw, at: tuple[int, int], line: str, **options: object) -> None:
        found.append(self.textbbox(at, line, font=options["font"]))  # type: ignore[arg-type]
        text(self, at, line, **options)  # type: ignore[arg-type]

    def spy_paste(self: Image.Image, cell: Image.Image, at: tuple[int, int]) -> None:
        found.append((*at, at[0] + cell.width, at[1] + cell.height))
        paste(self, cell, at)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", spy_text)
    monkeypatch.setattr(Image.Image, "paste", spy_paste)
    return found


LONG = "up-level3-repeat2-vit-block0-cross-q_" + "x" * 90 + "/and.more[0]"


@pytest.mark.parametrize("columns", [1, 7, 60])
@pytest.mark.parametrize("name", ["k", LONG, "a b " * 60])
def test_labels_neither_overlap_nor_leave_the_picture(boxes: Boxes, columns: int, name: str) -> None:
    """Names come from users' files and can have any length; a cut one names something else."""
    image = draw(
        [Column(f"{name}{i % 3}", name, "1x2x2", cells(3)) for i in range(columns)],
        [Label(name, name)] * 3,
        {f"{name}0": name},
        aspect=0.5,
    )
    for left, top, right, bottom in boxes:
        assert left >= 0 and top >= 0 and right <= image.width and bottom <= image.height
    for place, one in enumerate(boxes):
        for other in boxes[:place]:
            apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
            assert apart, (one, other)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60), st.integers(30, 200))
def test_wrapping_keeps_every_character(text: str, width: int) -> None:
    """Lines fit, and together they say what the text says, but for spaces."""
    lines = picture._wrapped(text, width)
    whole = "".join(map(picture._printable, text))
    assert "".join("".join(lines).split()) == "".join(whole.split())
    assert all(picture._FONT.getlength(line) <= width for line in lines)


def test_a_cell_shows_its_values() -> None:
    """Every value becomes a rectangle of its own colour; smoothing would invent features."""
    cell = cells(1, 4, 3)[0]
    assert cell is not None
    shown = np.asarray(picture._enlarged(cell, 120, 80))
    assert shown.shape == (80, 120, 3)
    centres = shown[10::20, 20::40]
    assert (centres == cell).all()
    assert {tuple(colour) for colour in shown.reshape(-1, 3)} == {tuple(c) for c in cell.reshape(-1, 3)}


def test_a_missing_cell_is_empty() -> None:
    assert picture._enlarged(None, 30, 20).getcolors() == [(600, (0xEE, 0xEE, 0xEE))]


def test_cells_keep_the_images_shape() -> None:
    assert picture._cell_size(4, aspect=0.5) == (168, 84)
    assert picture._cell_size(4, aspect=2.0) == (84, 168)
    assert picture._cell_size(1000, aspect=1.0) == (64, 64)
