"""Whether a ControlNet is followed: edges of generated pictures beside the edges that they were to have.

Edges are OpenCV's Canny with thresholds 100 and 200. An edge counts as hit where the other picture has one within one
pixel, diagonals included (each side is dilated by a 3 x 3 square before it is asked).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.embedded_figures.figure import Figure, Goal
from pipeline.embedded_figures.pipelines import generate
from pipeline.embedded_figures.scenes import Scene
from pipeline.embedded_figures.statistics import interval, paired
from pipeline.techniques.controlnet import canny_edges

LOW, HIGH = 100, 200
_LEAST_EDGES = 64
"""Pixels; a scene with fewer asks for nothing."""
_OF_THINGS = ("plain", "sharp")
"""Qualities whose edges are those of things; blurry scenes have few, noisy ones are full of edges of noise."""
Edges = NDArray[np.bool_]


@dataclass(frozen=True)
class Followed:
    """Control edges, and pictures generated with and without them."""

    scenes: Sequence[Scene]
    wanted: Edges
    """[n, H, W]"""
    with_control: NDArray[np.uint8]
    """RGB [n, H, W, 3]"""
    without: NDArray[np.uint8]
    """From the same noise and captions, [n, H, W, 3]."""


def edges(pictures: NDArray[np.uint8]) -> Edges:
    """Canny edges [n, H, W] of RGB pictures [n, H, W, 3]."""
    return canny_edges(pictures.transpose(0, 3, 1, 2), LOW, HIGH) > 0


def f1(found: Edges, wanted: Edges) -> NDArray[np.float64]:
    """F1 of each picture's edges, [n], from two arrays [n, H, W]; 1 where neither has any.

    Precision is the share of found edges with a wanted one within a pixel, recall the share of wanted edges with a
    found one within a pixel.
    """
    return np.array([_f1(one, other) for one, other in zip(found, wanted, strict=True)])


def with_edges(scenes: Sequence[Scene], most: int) -> list[Scene]:
    """The first scenes, neither blurry nor noisy, that have edges to follow."""
    chosen = [scene for scene in scenes if scene.quality in _OF_THINGS]
    return [scene for scene in chosen if edges(scene.pixels[None]).sum() >= _LEAST_EDGES][:most]


def followed(plain: Any, controlled: Any, scenes: Sequence[Scene], steps: int, guidance: float) -> Followed:
    """Pictures generated from each scene's caption, with its edges as control and without.

    Args:
        plain, controlled: as `pipelines.text_to_image` and `pipelines.controlled` gave them.
        scenes: of one size.
        steps: of DDIM.
        guidance: classifier-free, of both.
    """
    wanted = edges(np.stack([scene.pixels for scene in scenes]))
    controls = torch.from_numpy(wanted).float()[:, None].expand(-1, 3, -1, -1)
    prompts, size = [scene.caption for scene in scenes], (wanted.shape[1], wanted.shape[2])
    options: dict[str, Any] = {"steps": steps, "guidance": guidance, "size": size}
    ours = generate(controlled, prompts, controls=controls, **options)
    return Followed(scenes, wanted, ours, generate(plain, prompts, **options))


def figures(result: Followed) -> list[Figure]:
    """F1 with control, without, and what control gains."""
    ours, without = (f1(edges(one), result.wanted) for one in (result.with_control, result.without))
    what = "edges of generated pictures, F1 within 1 pixel"
    return [
        Figure(f"{what}, with ControlNet", interval(ours), "", Goal("at least", 0.4)),
        Figure(f"{what}, without", interval(without), "", Goal("at most", 0.15)),
        Figure(f"{what}, with minus without", paired(ours, without), ""),
    ]


def _f1(found: Edges, wanted: Edges) -> float:
    if not found.any() and not wanted.any():
        return 1.0
    if not found.any() or not wanted.any():
        return 0.0
    precision, recall = _near(wanted)[found].mean(), _near(found)[wanted].mean()
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


def _near(lines: Edges) -> Edges:
    return cv2.dilate(lines.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
