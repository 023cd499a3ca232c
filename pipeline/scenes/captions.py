"""What is said of a scene: its things, where they are, their ground, and how good the picture is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

from numpy.random import Generator

from pipeline.scenes.cutouts import CLASSES, COLOURS, Cutout

Quality = Literal["plain", "sharp", "blurry", "noisy"]

QUALITY_WORDS: Final[dict[Quality, str]] = {
    "plain": "",
    "sharp": ", best quality, sharp",
    "blurry": ", low quality, blurry",
    "noisy": ", low quality, noisy",
}
"""What the paper's experiment with prompts of quality needs; nothing is said of a plain picture."""


def thing_words(
    cutout: Cutout, width: int, height: int, centre_x: float, size: int, rng: Generator
) -> list[str]:
    """Words for one thing, from some up to all of: size, colour, name, class, place.

    Args:
        cutout: the thing.
        width, height: of the pasted thing, in pixels.
        centre_x: of it, in pixels.
        size: of the scene's sides, in pixels.
        rng: decides what is left out.
    """
    words = []
    own = set(cutout.caption.split())
    if rng.random() < 0.5:
        words.append("large" if max(width, height) > 0.65 * size else "small")
    if rng.random() < 0.5 and not own & COLOURS.keys():
        words.append(cutout.colour)
    named, classed = rng.random() < 0.6, rng.random() < 0.8
    class_name = CLASSES[cutout.class_id]
    if named:
        words += cutout.caption.split()
    if (classed or not named) and class_name not in words:
        words.append(class_name)
    if rng.random() < 0.4:
        words += ["on", "the", "left" if centre_x < size / 2 else "right"]
    return words


def caption(things: Sequence[Sequence[str]], ground: str, quality: Quality) -> str:
    """The scene's caption: `a photo of a large brown tiger mammal and a bird, snow, best quality, sharp`."""
    listed = " and ".join(f"a {' '.join(words)}" for words in things)
    return f"a photo of {listed}, {ground}{QUALITY_WORDS[quality]}"
