"""Feature maps as colours: the first three principal components, one basis for all maps of a tap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_PERCENTILES = (2.0, 98.0)  # so that a few massive activations do not take all of the range


@dataclass(frozen=True)
class Basis:
    """Turns channels into red, green and blue."""

    mean: NDArray[np.float64]
    """[C]"""
    components: NDArray[np.float64]
    """[3, C], by falling variance; zero where there are fewer."""
    low: NDArray[np.float64]
    """[3]: what becomes 0."""
    high: NDArray[np.float64]
    """[3]: what becomes 255."""

    def colours(self, maps: NDArray[Any]) -> NDArray[np.uint8]:
        """[n, C, h, w] as RGB [n, h, w, 3]."""
        projected = _tokens(maps) @ self.components.T - self.mean @ self.components.T
        span = np.where(self.high > self.low, self.high - self.low, 1.0)
        scaled = np.clip((projected - self.low) / span, 0, 1)
        n, _, h, w = maps.shape
        return np.rint(255 * scaled).astype(np.uint8).reshape(n, h, w, 3)


def fit(maps: NDArray[Any]) -> Basis:
    """The basis of some maps [n, C, h, w], finite: principal components over all places of all of them.

    A component's sign means nothing, so each is turned until its largest entry is positive: the same maps always
    get the same colours.
    """
    tokens = _tokens(maps)
    mean = tokens.mean(0)
    tokens = tokens - mean
    # The right singular vectors of the tokens, from a matrix that is small however many tokens there are.
    _, variances, rows = np.linalg.svd(tokens.T @ tokens / len(tokens), hermitian=True)
    found = rows[:3] * (variances[:3, None] > 1e-12 * max(variances[0], 1e-300))
    largest = np.take_along_axis(found, np.abs(found).argmax(1)[:, None], 1)
    components = np.zeros((3, tokens.shape[1]))
    components[: len(found)] = np.where(largest < 0, -found, found)
    low, high = np.percentile(tokens @ components.T, _PERCENTILES, axis=0)
    return Basis(mean, components, low, high)


def _tokens(maps: NDArray[Any]) -> NDArray[np.float64]:
    """[n, C, h, w] as [n * h * w, C]."""
    return np.moveaxis(maps, 1, -1).reshape(-1, maps.shape[1]).astype(np.float64)
