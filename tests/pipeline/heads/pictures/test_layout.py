"""Pieces of pictures: whole words, sizes that fit each other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from pipeline.heads.pictures import layout
from pipeline.heads.pictures.layout import PAPER, SIDE
from tests.pipeline.heads.shown import has_margin, pixels


def ink(image: Image.Image) -> int:
    return int((np.asarray(image) != 255).any(-1).sum())


@settings(max_examples=40, deadline=None)
@given(st.text(st.characters(max_codepoint=0x3100), min_size=1, max_size=36))
@example("Wgj" * 12)
@example("\N{LATIN CAPITAL LETTER A WITH RING ABOVE AND ACUTE}")
def test_words_are_whole(words: str) -> None:
    """A line has as much ink as on a canvas with room on all sides."""
    shown = layout.text(words, letters=10**6)
    line = " ".join(layout.printable(words).split())
    large = Image.new("RGB", (shown.width + 200, 100), PAPER)
    ImageDraw.Draw(large).text((40, 40), line, fill=layout.INK, font=layout.font())
    assert ink(shown) == ink(large)


def test_long_words_take_more_lines() -> None:
    one, many = layout.text("x" * 36), layout.text("x" * 36 * 5)
    assert (many.width, many.height) == (one.width, 5 * one.height)
    assert ink(many) == 5 * ink(one)


@pytest.mark.parametrize(
    ("words", "expected"),
    [("café, лес", "café, лес"), ("马", "\\u9a6c"), ("a\nb", "a\\nb"), ("\ud800", "\\ud800")],
)
def test_letters_that_the_font_lacks_are_escaped(words: str, expected: str) -> None:
    """Otherwise all of them are the same empty box."""
    assert layout.printable(words) == expected


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 400), st.integers(1, 400))
def test_a_mask_is_sized_as_its_picture(height: int, width: int) -> None:
    mask = np.arange(height * width).reshape(height, width)
    picture = np.stack([mask % 251] * 3, -1).astype(np.uint8)
    shown, sized = layout.sized(picture), layout.sized_mask(mask)
    assert shown.size == sized.shape[::-1] and max(shown.size) == SIDE
    rows, columns = np.divmod(sized, width)
    assert (
        np.abs((rows + 0.5) / height - (np.arange(len(rows))[:, None] + 0.5) / len(rows)) <= 0.51 / height
    ).all()
    assert (np.diff(columns, axis=1) >= 0).all() and columns.min() >= 0


def test_a_small_picture_is_enlarged_value_for_value() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (2, 4, 3), dtype=np.uint8)
    shown = np.asarray(layout.sized(picture))
    assert (shown == picture.repeat(SIDE // 4, 0).repeat(SIDE // 4, 1)).all()


def test_small_pieces_flow_in_columns() -> None:
    pieces = [layout.swatch((i, 0, 0), 40, 10) for i in range(7)]
    shown = layout.flowing(pieces, width=160, gap=18)
    assert shown.size == (3 * 40 + 2 * 18, 3 * 10 + 2 * 4)
    assert [shown.getpixel((x, y)) for x in (5, 63, 121) for y in (5, 19, 33)][:7] == [
        (i, 0, 0) for i in range(7)
    ]
    assert layout.flowing(pieces, width=10).width == 40  # wider than asked rather than cut


def test_a_file_has_a_margin_and_the_same_bytes_each_time() -> None:
    piece = layout.swatch((1, 2, 3))
    assert layout.png(piece) == layout.png(piece)
    assert has_margin(pixels(layout.png(piece)), 14)
