"""Whether a candidate suppresses content shift: its Score minus the plain feature's, image by image.

Images differ in Score far more than candidates do, so only paired differences say anything. They are few, and their
distribution may be skewed (Score has no lower bound): the bootstrap's percentiles are too narrow for that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.student import student
from schemas.gate import Estimate, Verdict

Key = TypeVar("Key")


def estimates(values: Mapping[Key, NDArray[np.floating[Any]]], *, confidence: float) -> dict[Key, Estimate]:
    """Mean over images of each array, with an interval; all intervals hold together (Bonferroni).

    Each end is the wider one of Student's interval and of Hall's (1992, J. R. Statist. Soc. B 54, 221), which takes
    skewness into account. Simulated at 95% for 1, 10 and 40 arrays of 8 to 64 images, 3,000 times each, some interval
    misses its true mean in 2 to 5% of cases for normal values, independent or not, and for Student's with 4 degrees of
    freedom; in 4 to 9% for a skewness of 1; in 4 to 11% for one of 2 from 12 images on and up to 10 arrays. For a
    skewness of 2, 40 arrays need 32 images (7%); with 8, even 10 arrays miss in 15%, and 40 in 24%.

    Args:
        values: each [images], of the same images in the same order.
        confidence: of all intervals together, in (0, 1).

    Raises:
        ValueError: arrays of different lengths, fewer than 2 images, or a value that is not finite.
    """
    if not values:
        return {}
    exact = {name: np.asarray(array, np.float64) for name, array in values.items()}
    point = student((1 - confidence) / len(exact) / 2, _images(exact) - 1)
    return {name: _estimate(array, point) for name, array in exact.items()}


def verdict(gain: Estimate) -> Verdict:
    """What a gain in Score says of its candidate; nothing, where its interval reaches 0."""
    if gain.low > 0:
        return "suppresses"
    return "harms" if gain.high < 0 else "no effect"


def usable(scores: Sequence[NDArray[np.floating[Any]]]) -> NDArray[np.bool_]:
    """Images [images] whose values are all finite. One without edges has an anchor without shift, and so no Score.

    Args:
        scores: each [..., images], of the same images in the same order.

    Raises:
        ValueError: no array, or arrays of different numbers of images.
    """
    counts = sorted({array.shape[-1] for array in scores})
    if len(counts) != 1:
        raise ValueError(
            f"{len(scores)} scores are of {counts} images; give at least one, all of the same images"
        )
    finite = [np.isfinite(array).all(axis=tuple(range(array.ndim - 1))) for array in scores]
    return np.asarray(np.logical_and.reduce(finite), np.bool_)


def agreement(closer: Sequence[bool | None], verdicts: Sequence[Verdict]) -> tuple[int, int]:
    """How many candidates both guidelines agree on, and of how many both say something.

    Args:
        closer: whether Img2Img comes closer to the input with each candidate; None where that is not clear.
        verdicts: of the same candidates, in the same order.

    Raises:
        ValueError: another number of verdicts.
    """
    compared = [
        is_closer == (found == "suppresses")
        for is_closer, found in zip(closer, verdicts, strict=True)
        if is_closer is not None
    ]
    return sum(compared), len(compared)


def _images(values: Mapping[Key, NDArray[np.float64]]) -> int:
    """Their number, which all arrays share."""
    first, *_ = values
    shape = values[first].shape
    if len(shape) != 1 or shape[0] < 2:
        raise ValueError(f"{first!r} is {list(shape)}; an interval needs [images], and at least 2 images")
    for name, array in values.items():
        if array.shape != shape:
            raise ValueError(
                f"{name!r} is {list(array.shape)}, but {first!r} is {list(shape)}; give both for the same images"
            )
        if not (finite := np.isfinite(array)).all():
            raise ValueError(
                f"{name!r} has {int((~finite).sum())} values of {shape[0]} that are not finite; leave those images"
                " out of all arrays, see `usable`"
            )
    return shape[0]


def _estimate(values: NDArray[np.float64], point: float) -> Estimate:
    """`point` is Student's at the share that is left out at either end."""
    mean, images = float(values.mean()), len(values)
    apart = values - mean
    # Scaled, so that no cube leaves float64's range.
    largest = float(abs(apart).max()) or 1.0
    apart /= largest
    variance = float((apart**2).mean())
    skewness = float((apart**3).mean()) / variance**1.5 if variance else 0.0
    error = largest * math.sqrt(variance / (images - 1))
    shift = skewness / (6 * math.sqrt(images))
    return Estimate(
        mean=mean,
        low=mean - error * max(point, _hall(point, shift)),
        high=mean + error * max(point, -_hall(-point, shift)),
    )


def _hall(point: float, shift: float) -> float:
    """The t that Hall's transformation makes `point` of: (1 + 2 g t)^3 = 1 + 6 g (point - g), with g = `shift`."""
    root = float(np.cbrt(1 + 6 * shift * (point - shift)))
    # (root - 1) / 2g, without its 0 / 0.
    return 3 * (point - shift) / (root**2 + root + 1)
