"""Scenes to evaluate on, made up: noise with a class in one half, and what is known of it."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.embedded_figures.scenes import Scene
from pipeline.scenes.captions import QUALITY_WORDS, Quality
from tests.tars import make_tar


def scene(number: int, *, quality: Quality = "plain", classes: Sequence[int] = (1,), size: int = 64) -> Scene:
    """Scene of a number; it depends on nothing else but what is asked for."""
    rng = np.random.default_rng(number)
    labels = np.zeros((size, size), np.uint8)
    for place, class_id in enumerate(classes):
        labels[:, size // 2 + place * 8 :] = class_id
    pixels = rng.integers(0, 256, (size // 8, size // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    words = " and ".join(f"a thing {class_id}" for class_id in classes)
    caption = f"a photo of {words}, sand {number}{QUALITY_WORDS[quality]}"
    return Scene(("a.tar", f"scene{number:03d}"), pixels, caption, labels, quality, frozenset(classes))


def write(path: Path, scenes: Sequence[Scene], *, known_quality: bool = True) -> str:
    """A shard of scenes; without their quality, as shards had it before they had one."""
    samples = []
    for one in scenes:
        key = one.id[1]
        known: dict[str, object] = {
            "background": "sand",
            "objects": [{"class_id": class_id} for class_id in sorted(one.class_ids)],
        }
        if known_quality:
            known["quality"] = one.quality
        samples += [
            (f"{key}.jpg", encoded(one.pixels)),
            (f"{key}.json", json.dumps(known).encode()),
            (f"{key}.seg.png", encoded(one.labels)),
            (f"{key}.txt", one.caption.encode()),
        ]
    make_tar(path, samples)
    return str(path)


def encoded(pixels: np.ndarray) -> bytes:
    """As PNG, which loses nothing; what a member is called does not matter to decoders."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()
