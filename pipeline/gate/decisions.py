"""Whether a candidate suppresses content shift: its Score minus the plain feature's, image by image.

Images differ in Score far more than candidates do, so only paired differences say anything. Their distribution is
skewed (Score has no lower bound), hence the bootstrap. It is of the images that were measured: for fewer than about 20
its intervals are narrower than they should be, and for 2 they are no more than the range.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from schemas.gate import Estimate, Verdict

_AT_ONCE: Final = 1000
"""Resamples drawn together; bounds memory, and changes no result."""


def estimates(
    values: Mapping[str, NDArray[np.floating[Any]]], *, confidence: float, seed: int, resamples: int = 10_000
) -> dict[str, Estimate]:
    """Mean over images of each array, with the percentile bootstrap's interval.

    All arrays are resampled by the same draws of images. The intervals are widened (Bonferroni) so that all hold
    together with probability `confidence`; beyond that no array's depends on the others.

    Args:
        values: each [images], of the same images in the same order.
        confidence: of all intervals together, in (0, 1).
        seed: of the draws; the same seed gives the same intervals.
        resamples: draws of images, each as many as there are.

    Raises:
        ValueError: arrays of different lengths, fewer than 2 images, or a value that is not finite.
    """
    if not values:
        return {}
    exact = {name: np.asarray(array, np.float64) for name, array in values.items()}
    images = _images(exact)
    tail = (1 - confidence) / len(exact) / 2
    rng = np.random.default_rng(seed)
    means: dict[str, list[NDArray[np.float64]]] = {name: [] for name in exact}
    for start in range(0, resamples, _AT_ONCE):
        rows = min(_AT_ONCE, resamples - start)
        # How often each image is drawn, [rows, images]: a resample's mean is then one product.
        times = rng.multinomial(images, np.full(images, 1 / images), rows).astype(np.float64)
        for name, array in exact.items():
            means[name].append(times @ array / images)
    return {
        name: _estimate(float(array.mean()), np.concatenate(means[name]), tail)
        for name, array in exact.items()
    }


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


def _images(values: Mapping[str, NDArray[np.float64]]) -> int:
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


def _estimate(mean: float, resampled: NDArray[np.float64], tail: float) -> Estimate:
    low, high = np.quantile(resampled, [tail, 1 - tail])
    # Where all values are equal, rounding can put the mean beside its own interval.
    return Estimate(mean=mean, low=min(float(low), mean), high=max(float(high), mean))
