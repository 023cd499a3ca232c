"""Semantic correspondence: which point of one image shows the same as a point of another.

Descriptors are compared by their cosine, and the most similar place is the answer. They are features as they are, or
behind a convolution that is trained on pairs of points. Maps here are of one image, [C, h, w], and points are shares
(x, y) of the image, as in `pipeline.heads.networks.points`; source and target may differ in resolution.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.heads.networks.alignment import resized
from pipeline.heads.networks.points import centres, sample_points

_CHANNELS = 256
"""Enlarged at once, which bounds the memory."""
_LEAST = 1e-6
"""Length below which a descriptor is none, and similar to nothing."""


def similarity(source: Tensor, points: Tensor, target: Tensor, factor: int = 1) -> Tensor:
    """Cosines between the source's descriptors at points [n, 2] and all places of the target, float32 [n, H, W].

    Descriptors between cells are those of the bilinearly enlarged map: with a `factor`, the target is enlarged to
    H, W = factor * h, factor * w places. To enlarge the cosines instead would be of no use, since what is bilinear
    between cells is greatest at a cell.
    """
    wanted = functional.normalize(sample_points(source.float()[None], points[None])[0], dim=1, eps=_LEAST)
    height, width = target.shape[1:]
    size = (factor * height, factor * width)
    # Dot products and interpolation commute, so only lengths need the enlarged map, one for all points.
    products = (wanted @ target.float().flatten(1)).view(len(points), 1, height, width)
    return resized(products, size)[:, 0] / _lengths(target, size)


def nearest(source: Tensor, points: Tensor, target: Tensor, factor: int = 4) -> Tensor:
    """The target's most similar places to the source's points [n, 2]: points, float32 [n, 2].

    Args:
        source: [C, h, w].
        points: in the source.
        target: [C, h, w].
        factor: answers are centres of this many places a cell, along each side.
    """
    found = similarity(source, points, target, factor)
    height, width = found.shape[1:]
    return centres((height, width), found.device)[found.flatten(1).argmax(1)]


class ConvHead(nn.Module):
    """One 3 x 3 convolution after each assigner, results side by side; one more for the attention features.

    Args:
        parts: p, the assigners.
        channels: c of each one's mixture.
        attention: a, channels of the attention features; 0 for none.
        width: d, channels of each result.
    """

    def __init__(self, parts: int, channels: int, attention: int, width: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Conv2d(channels, width, 3, padding=1) for _ in range(parts))
        self.attention = nn.ModuleList([nn.Conv2d(attention, width, 3, padding=1)] if attention else [])

    def forward(self, parts: Tensor, attention: Tensor) -> Tensor:
        """Descriptors [B, d * (p, and 1 with attention), h, w] of [B, p, c, h, w] and [B, a, h, w]."""
        found = [convolution(part) for convolution, part in zip(self.parts, parts.unbind(1), strict=True)]
        found += [convolution(attention) for convolution in self.attention]
        return torch.cat(found, 1)


def matching_loss(
    source: Tensor, target: Tensor, source_points: Tensor, target_points: Tensor, temperature: float
) -> Tensor:
    """Cross entropy of finding each point among all cells of the other image, mean of both directions; a scalar.

    A point between cells counts for the four around it by its bilinear weights.

    Args:
        source: descriptors [D, h, w].
        target: descriptors [D, h, w].
        source_points: [n, 2], n at least 1.
        target_points: [n, 2], which show the same.
        temperature: cosines are divided by it before the softmax.
    """
    there = _surprise(source, source_points, target, target_points, temperature)
    back = _surprise(target, target_points, source, source_points, temperature)
    return (there + back) / 2


def _surprise(source: Tensor, points: Tensor, target: Tensor, truth: Tensor, temperature: float) -> Tensor:
    logits = similarity(source, points, target) / temperature
    likely = logits.flatten(1).log_softmax(1).view_as(logits)
    return -sample_points(likely[:, None], truth[:, None]).mean()


def _lengths(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Lengths of the descriptors of an enlarged map [C, h, w]: [H, W]."""
    squares = [resized(some[None], size)[0].square().sum(0) for some in maps.split(_CHANNELS)]
    return torch.stack(squares).sum(0).clamp_min(_LEAST**2).sqrt()
