"""Cut-outs at random scale, place and flip over a ground: a picture with its caption, mask and things."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from pipeline.scenes.captions import Quality, caption, thing_words
from pipeline.scenes.cutouts import CLASSES, Cutout, resized
from pipeline.scenes.grounds import GROUNDS, Pixels, ground

_THINGS: Final = (0.65, 0.28, 0.07)
"""Shares of scenes with one, two, three."""
_QUALITIES: Final[dict[Quality, float]] = {"plain": 0.4, "sharp": 0.3, "blurry": 0.18, "noisy": 0.12}
_OUTSIDE: Final = 0.12
"""Share of a thing's side that may lie beyond the scene's edge."""
_LEAST_SEEN: Final = 0.25
"""Share of a thing; where less would be seen of one, all are drawn anew, since the caption names them."""
_SOLID: Final = 127.5
"""Opacity from which a pixel is the thing's, of 255."""


@dataclass(frozen=True)
class Thing:
    """A cut-out where it was pasted."""

    cutout: Cutout
    box: tuple[int, int, int, int]
    """(x, y, width, height) in pixels; parts may lie outside the scene."""
    flipped: bool

    def document(self) -> dict[str, object]:
        """What the sample's json says of it."""
        return {
            "cutout": self.cutout.name,
            "class_id": self.cutout.class_id,
            "class_name": CLASSES[self.cutout.class_id],
            "caption": self.cutout.caption,
            "box_xywh": list(self.box),
            "flipped": self.flipped,
        }


@dataclass(frozen=True)
class Scene:
    """One picture, and all that is known of it."""

    pixels: NDArray[np.uint8]
    """[size, size, 3], RGB."""
    classes: NDArray[np.uint8]
    """[size, size], the class of each pixel."""
    instances: NDArray[np.uint8]
    """[size, size], 1 + the place in `things` of what is seen at each pixel; 0 is the ground."""
    caption: str
    ground: str
    quality: Quality
    things: tuple[Thing, ...]


def compose(
    cutouts: Sequence[Cutout], size: int, rng: Generator, grounds: tuple[str, ...] = GROUNDS
) -> Scene:
    """A scene of some of `cutouts` on one of `grounds`, [size, size] pixels, as the generator alone decides."""
    ground_name = grounds[rng.integers(len(grounds))]
    backdrop = ground(ground_name, size, rng)
    count = 1 + int(rng.choice(len(_THINGS), p=_THINGS))
    while True:
        placed = [_put(_draw(cutouts, rng), size, count, rng) for _ in range(count)]
        pixels, instances = _laid(backdrop, placed)
        if all(_seen(instances, place, rgba) >= _LEAST_SEEN for place, (_, rgba) in enumerate(placed)):
            break
    things = tuple(thing for thing, _ in placed)
    class_of = np.array([0, *(thing.cutout.class_id for thing in things)], np.uint8)
    said = [
        thing_words(thing.cutout, width, height, x + width / 2, size, rng)
        for thing in things
        for x, _, width, height in [thing.box]
    ]
    quality: Quality = rng.choice(list(_QUALITIES), p=list(_QUALITIES.values())).item()
    return Scene(
        np.clip(np.rint(_developed(pixels, quality, rng)), 0, 255).astype(np.uint8),
        class_of[instances],
        instances,
        caption(said, ground_name, quality),
        ground_name,
        quality,
        things,
    )


def _laid(backdrop: Pixels, placed: Sequence[tuple[Thing, Pixels]]) -> tuple[Pixels, NDArray[np.uint8]]:
    """Things over a ground, later ones over earlier ones; and 1 + the place of what is seen, [size, size]."""
    pixels, instances = backdrop.copy(), np.zeros(backdrop.shape[:2], np.uint8)
    for place, (thing, rgba) in enumerate(placed):
        instances[_paste(pixels, rgba, thing.box)] = place + 1
    return pixels, instances


def _seen(instances: NDArray[np.uint8], place: int, rgba: Pixels) -> float:
    """Share of a thing that neither others cover nor the edge cuts off."""
    return float((instances == place + 1).sum() / (rgba[..., 3] > _SOLID).sum())


def _draw(cutouts: Sequence[Cutout], rng: Generator) -> Cutout:
    """A cut-out, from small classes more often than their share: by the root of a class's size."""
    sizes = np.bincount([cutout.class_id for cutout in cutouts], minlength=len(CLASSES))
    weights = np.array([sizes[cutout.class_id] ** -0.5 for cutout in cutouts])
    return cutouts[rng.choice(len(cutouts), p=weights / weights.sum())]


def _put(cutout: Cutout, size: int, count: int, rng: Generator) -> tuple[Thing, Pixels]:
    """Where a cut-out goes, and its pixels [height, width, 4] there."""
    longest = size * rng.uniform(0.5, 0.95) * (1.0 if count == 1 else 0.72)
    scale = longest / max(cutout.rgba.shape[:2])
    height, width = (max(8, round(side * scale)) for side in cutout.rgba.shape[:2])
    rgba = resized(cutout.rgba.astype(np.float32), width, height)
    flipped = bool(rng.random() < 0.5)
    if flipped:
        rgba = rgba[:, ::-1].copy()
    rgba[..., :3] = rgba[..., :3] * rng.uniform(0.85, 1.12) + rng.normal(0, 6, 3)
    x, y = (
        int(rng.integers(-int(side * _OUTSIDE), size - side + int(side * _OUTSIDE) + 1))
        for side in (width, height)
    )
    return Thing(cutout, (x, y, width, height), flipped), np.clip(rgba, 0, 255)


def _paste(pixels: Pixels, rgba: Pixels, box: tuple[int, int, int, int]) -> NDArray[np.bool_]:
    """Lay `rgba` over `pixels`, in place; where it is opaque, [size, size]."""
    size = len(pixels)
    x, y, width, height = box
    left, top, right, bottom = max(0, x), max(0, y), min(size, x + width), min(size, y + height)
    part = rgba[top - y : bottom - y, left - x : right - x]
    alpha = part[..., 3:] / 255
    here = (slice(top, bottom), slice(left, right))
    pixels[here] = pixels[here] * (1 - alpha) + part[..., :3] * alpha
    solid = np.zeros((size, size), np.bool_)
    solid[here] = part[..., 3] > _SOLID
    return solid


def _developed(pixels: Pixels, quality: Quality, rng: Generator) -> Pixels:
    """The picture in its quality."""
    if quality == "sharp":
        soft = cv2.GaussianBlur(pixels, (0, 0), 1.0)
        return np.asarray(pixels + 0.4 * (pixels - soft), np.float32)
    if quality == "blurry":
        return np.asarray(cv2.GaussianBlur(pixels, (0, 0), rng.uniform(1.2, 2.4)), np.float32)
    if quality == "noisy":
        return pixels + rng.normal(0, rng.uniform(8, 16), pixels.shape).astype(np.float32)
    return pixels
