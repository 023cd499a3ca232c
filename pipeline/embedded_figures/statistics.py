"""Means with 95% intervals: Student's, over images or over seeds, whose values are independent of each other."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike

_FEW: Final = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)
"""Student's 97.5% points for 1 to 10 degrees of freedom."""


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
    half = student(n - 1) * float(given.std(ddof=1)) / math.sqrt(n)
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


def student(freedom: int) -> float:
    """The 97.5% point of Student's distribution, within 0.001."""
    if freedom <= len(_FEW):
        return _FEW[freedom - 1]
    z = NormalDist().inv_cdf(0.975)
    # Its expansion in 1 / freedom (Abramowitz and Stegun 26.7.5).
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def falls(values: Sequence[Any]) -> int:
    """In how many steps from one value to the next they fall."""
    return sum(after < before for before, after in itertools.pairwise(values))
