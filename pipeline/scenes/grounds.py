"""Generated grounds: two bands of colour with a wavy border between them, and a soft texture; or squared paper."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Pixels = NDArray[np.float32]


@dataclass(frozen=True)
class _Look:
    above: tuple[int, int, int]
    below: tuple[int, int, int]
    border: float
    """Width of the border, as a share of the height."""
    texture: float
    """Of the lower band, in grey levels."""


_LOOKS: Final = {
    "sky over grass": _Look((120, 185, 235), (70, 140, 60), 0.02, 9),
    "sand": _Look((220, 195, 150), (205, 175, 125), 0.3, 7),
    "sea": _Look((165, 210, 235), (25, 90, 150), 0.02, 8),
    "snow": _Look((200, 215, 230), (242, 244, 248), 0.3, 4),
    "night": _Look((15, 20, 60), (25, 25, 35), 0.3, 4),
    "room": _Look((205, 190, 165), (130, 90, 60), 0.02, 6),
    "road": _Look((190, 200, 205), (90, 90, 92), 0.02, 6),
    "forest": _Look((60, 95, 60), (45, 60, 35), 0.3, 11),
    "sunset": _Look((250, 150, 80), (90, 50, 80), 0.1, 5),
    "pink wall": _Look((235, 170, 185), (225, 155, 170), 0.3, 4),
}
GROUNDS: Final = tuple(_LOOKS)
"""What captions call those of photographs."""
PAPER: Final = "squared paper"
"""That of drawings."""
_PAPER, _LINES = (246, 243, 234), (150, 180, 225)
_SQUARES: Final = 10
"""Along a side."""


def ground(name: str, size: int, rng: Generator) -> Pixels:
    """The ground `name`, [size, size, 3], 0 to 255."""
    if name == PAPER:
        return _squared_paper(size, rng)
    look = _LOOKS[name]
    above, below = (np.asarray(rgb, np.float32) + rng.normal(0, 10, 3) for rgb in (look.above, look.below))
    height = rng.uniform(0.35, 0.7) + 0.03 * waves(size, 32, rng) - np.linspace(0, 1, size)[:, None]
    lower = 1 / (1 + np.exp(np.clip(height / look.border, -30, 30)))
    texture = 0.5 * waves(size, 5, rng) + waves(size, 18, rng)
    bands = above * (1 - lower[..., None]) + below * lower[..., None]
    pixels = bands + (texture * look.texture * (0.3 + 0.7 * lower))[..., None]
    if name == "night":
        pixels[(rng.random((size, size)) < 0.003) & (lower < 0.5)] = 225
    return np.clip(pixels, 0, 255).astype(np.float32)


def _squared_paper(size: int, rng: Generator) -> Pixels:
    pixels = np.tile(np.asarray(_PAPER, np.float32) + rng.normal(0, 4, 3), (size, size, 1))
    step, (top, left) = size // _SQUARES, rng.integers(size // _SQUARES, size=2)
    pixels[top::step] = pixels[:, left::step] = _LINES
    return np.clip(pixels, 0, 255).astype(np.float32)


def waves(size: int, length: int, rng: Generator) -> Pixels:
    """Smooth noise [size, size] of variance near 1, with structures of `length` pixels."""
    coarse = rng.standard_normal((max(2, size // length),) * 2).astype(np.float32)
    return np.asarray(cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC), np.float32)
