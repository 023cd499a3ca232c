"""What predictions are worth: shares from 0 to 1.

Classes that no true pixel has are left out of every mean, as in `pipeline.linear_probe`; a pixel that is wrongly taken
for one counts against its true class. Others differ where a class is absent: mmsegmentation counts it as 0 if any pixel
is taken for it, ddpm-segmentation as 0 always. The latter also counts as wrong what is predicted for ignored pixels,
which do not count at all here. With every class in the truth, and without ignored pixels, all agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline import linear_probe


@dataclass(frozen=True)
class Scores:
    """Of a confusion, of pixels or of images."""

    miou: float
    """Mean over classes of `iou`."""
    aacc: float
    """Share of pixels that are right; of images, the accuracy."""
    macc: float
    """Mean over classes of `acc`."""
    iou: Tensor
    """Intersection over union by class, float64 [K]; NaN for classes that are not in the truth."""
    acc: Tensor
    """Share of a class's pixels that are right, float64 [K]; NaN likewise."""


@dataclass(frozen=True)
class Pck:
    """Percentage of correct keypoints, as shares, for each of several distances."""

    alphas: tuple[float, ...]
    per_point: tuple[float, ...]
    """Share of all points that are right."""
    per_image: tuple[float, ...]
    """Mean over pairs of images of the share within each: pairs with few points count as much as those with many."""


def confusion(predicted: Tensor, truth: Tensor, classes: int, ignore: int = 255) -> Tensor:
    """Pixels, or images, by (true class, predicted class), int64 [K, K]; sums of these are those of larger sets.

    Args:
        predicted: integers of any shape, from 0 to K - 1 where they count.
        truth: integers of the same shape, from 0 to K - 1 or `ignore`.
        classes: K.
        ignore: what this is true of does not count.

    Raises:
        ValueError: shapes that differ, or an id that is no class.
    """
    if predicted.shape != truth.shape:
        raise ValueError(
            f"predictions are {list(predicted.shape)}, the truth {list(truth.shape)}; they must agree"
        )
    counts = truth != ignore
    predicted, truth = predicted[counts], truth[counts]
    for name, ids in (("predicted", predicted), ("true", truth)):
        if len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < classes:
            raise ValueError(
                f"{name} ids go from {int(ids.min())} to {int(ids.max())}; with {classes} classes they are 0 to"
                f" {classes - 1}, or {ignore} in the truth for what does not count"
            )
    return linear_probe.confusion(predicted, truth, classes)


def scores(counts: Tensor) -> Scores:
    """Scores of a `confusion`.

    Raises:
        ValueError: nothing was counted.
    """
    miou = linear_probe.mean_iou(counts)
    hit, true = counts.diagonal().double(), counts.sum(1).double()
    iou = torch.where(true > 0, hit / (true + counts.sum(0) - hit), torch.nan)
    acc = hit / true
    return Scores(miou, float(hit.sum() / true.sum()), float(acc.nanmean()), iou, acc)


def right(predicted: Tensor, truth: Tensor, extent: Tensor, alpha: float) -> Tensor:
    """Which points are right, bool [n]: no farther from the truth than `alpha` times the extent.

    Args:
        predicted: [n, 2], in pixels of the image that shows them.
        truth: [n, 2].
        extent: [n], the longer side of that image, or of the object's box in it, in pixels.
        alpha: 0.1 in most papers.
    """
    return torch.linalg.vector_norm(predicted.double() - truth.double(), dim=1) <= alpha * extent.double()


def pck(
    predicted: Tensor, truth: Tensor, extent: Tensor, image: Tensor, alphas: Sequence[float] = (0.1,)
) -> Pck:
    """Both averages of `right`, of which papers on SPair-71k report either; say which one is meant.

    Args:
        predicted: [n, 2], and likewise `truth` and `extent`: see `right`.
        image: integers [n], the same for points of the same pair of images.
        alphas: distances, as shares of the extent.

    Raises:
        ValueError: no point.
    """
    if not len(predicted):
        raise ValueError("there are no points to score; give at least one pair of images with common points")
    hits = torch.stack([right(predicted, truth, extent, alpha) for alpha in alphas]).double()
    place = image.unique(return_inverse=True)[1]
    sums = hits.new_zeros(len(alphas), int(place.max()) + 1).index_add(1, place, hits)
    shares = sums / torch.bincount(place)
    return Pck(tuple(alphas), tuple(hits.mean(1).tolist()), tuple(shares.mean(1).tolist()))
