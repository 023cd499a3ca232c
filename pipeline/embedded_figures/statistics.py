"""Means with 95% intervals: Student's, over images or over seeds, whose values are independent of each other."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pipeline.student import student

_TAIL: Final = 0.025
"""At either end of an interval of 95%."""


@dataclass(frozen=True)
class Interval:
    """A mean, and where the true one lies with a probability of 95%."""

    mean: float
    low: float | None
    """None where the value is a count or a comparison of means, or comes from a single observation."""
    high: float | None
    n: int
    """Independent observations: images, or seeds."""

    def times(self, factor: float) -> Interval:
        """The same in another unit; a negative factor exchanges the bounds."""
        if self.low is None or self.high is None:
            return Interval(self.mean * factor, None, None, self.n)
        low, high = sorted((self.low * factor, self.high * factor))
        return Interval(self.mean * factor, low, high, self.n)


def interval(values: ArrayLike) -> Interval:
    """Mean of independent values [n], with Student's interval.

    Raises:
        ValueError: no value, or one that is not finite.
    """
    given = np.asarray(values, np.float64).ravel()
    if not len(given) or not np.isfinite(given).all():
        raise ValueError(
            f"{len(given)} values, {int(np.isfinite(given).sum())} of them finite; an interval needs at least one, and"
            " all finite"
        )
    mean, n = float(given.mean()), len(given)
    if n == 1:
        return Interval(mean, None, None, 1)
    half = student(_TAIL, n - 1) * float(given.std(ddof=1)) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def paired(values: ArrayLike, beside: ArrayLike) -> Interval:
    """Mean of `values` - `beside`, both [n] and of the same images or seeds in the same order.

    Raises:
        ValueError: as `interval`; another number of values than of partners.
    """
    ours, theirs = np.asarray(values, np.float64), np.asarray(beside, np.float64)
    if ours.shape != theirs.shape:
        raise ValueError(f"{list(ours.shape)} values beside {list(theirs.shape)}; pairs need one for each")
    return interval(ours - theirs)


def counted(count: float, n: int) -> Interval:
    """A number without an interval."""
    return Interval(float(count), None, None, n)


def falls(values: Sequence[Any]) -> int:
    """In how many steps from one value to the next they fall."""
    return sum(after < before for before, after in itertools.pairwise(values))


def spearman(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """Rank correlation of two arrays [n]; NaN where one of them is constant."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.corrcoef(_ranks(one), _ranks(other))[0, 1])


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """With the mean rank for equal ones, which a bootstrap has many of."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    middle = counts.cumsum() - (counts - 1) / 2
    return np.asarray(middle[inverse], np.float64)
