"""A folder of stamps for tests: made up, but with the names, captions and transparency of the real ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

SEEN = ("animals/birds/parrot.png", "food/fruit/plum.png", "vehicles/auto/van.png", "plants/trees/ash.png")
HELD_OUT = ("animals/birds/duck.png", "plants/flowers/rose.png")
"""Names that the list of held-out cut-outs has."""
DRAWN = ("food/fruit/cartoon/pear.png", "town/houses/cartoon/mill.png")
_IGNORED = ("symbols/heart.png", "animals/birds/parrot_mirror.png", "symbols/cartoon/heart.png")


def make_stamps(folder: Path) -> Path:
    """Write them, and some that must be passed over."""
    for number, name in enumerate((*SEEN, *HELD_OUT, *DRAWN, *_IGNORED)):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        _ellipse(number, width=90 + 8 * number, height=120 - 6 * number).save(path)
        path.with_suffix(".txt").write_text(f"A {path.stem}, seen from afar.\ntranslations=follow\n")
    Image.new("RGB", (100, 100)).save(folder / "food/fruit/opaque.png")
    _ellipse(1, width=20, height=20).save(folder / "food/fruit/tiny.png")
    return folder


def _ellipse(number: int, width: int, height: int) -> Image.Image:
    """An ellipse with a gradient, in the middle of a transparent ground."""
    y, x = np.mgrid[0 : height + 20, 0 : width + 20].astype(float)
    inside = ((x - width / 2 - 10) / (width / 2)) ** 2 + ((y - height / 2 - 10) / (height / 2)) ** 2 <= 1
    rgba = np.zeros((height + 20, width + 20, 4), np.uint8)
    rgba[..., 0] = 40 + 160 * x / x.max()  # brighter ones must not be cut off at white
    rgba[..., 1] = 40 + 160 * y / y.max()
    rgba[..., 2] = 20 * number
    rgba[..., 3] = np.where(inside, 255, 0)
    return Image.fromarray(rgba, "RGBA")
