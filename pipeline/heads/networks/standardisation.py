"""Channels brought to mean 0 and standard deviation 1: those of diffusion features differ by orders of magnitude, and a
head with one learning rate for all would see the largest only.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Moments:
    """Mean and standard deviation of channels over maps that come in parts, in float64.

    Parts are merged by their own means (Chan et al. 1979), so that a mean far from zero costs no precision.
    """

    def __init__(self) -> None:
        self.count = 0
        """Cells so far."""
        self._mean = self._squares = torch.zeros(())
        self._rounding = 0.0
        """Of the least precise maps, as a share of a value."""

    def add(self, maps: Tensor) -> None:
        """Take maps [B, C, h, w] in; none at all (B = 0) changes nothing."""
        count = maps.numel() // maps.shape[1]
        if count == 0:
            return
        variance, mean = torch.var_mean(maps.double(), dim=(0, 2, 3), correction=0)
        step, total = mean - self._mean.to(mean), self.count + count
        self._squares = self._squares.to(mean) + variance * count + step**2 * (self.count * count / total)
        self._mean = self._mean.to(mean) + step * (count / total)
        self.count = total
        self._rounding = max(self._rounding, torch.finfo(maps.dtype).eps)

    @property
    def mean(self) -> Tensor:
        """float64 [C]."""
        return self._mean

    @property
    def std(self) -> Tensor:
        """float64 [C]; 1 for a channel that is constant, or varies by less than its dtype's rounding.

        Such a channel becomes about 0 everywhere, and rounding is not blown up to a feature.
        """
        std = (self._squares / self.count).sqrt()
        return torch.where(std > self._rounding * self._mean.abs(), std, 1.0)


class Standardisation(nn.Module):
    """Standardises the channels of one map; changes nothing before `take`.

    Its buffers `mean` and `std`, float32 [C, 1, 1], are part of the state dict.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("std", torch.ones(channels, 1, 1))

    def take(self, moments: Moments) -> None:
        """Standardise by these from now on.

        Raises:
            ValueError: no cell was seen, or some were not finite.
        """
        if moments.count == 0:
            raise ValueError("there are no maps to take mean and standard deviation of; give at least one")
        if not (finite := moments.mean.isfinite() & moments.std.isfinite()).all():
            raise ValueError(
                f"{int((~finite).sum())} of {len(finite)} channels have values that are not finite, the first one is"
                f" {int((~finite).nonzero()[0])}; leave out the rows that hold them"
            )
        self.mean.copy_(moments.mean[:, None, None])
        self.std.copy_(moments.std[:, None, None])

    def forward(self, maps: Tensor) -> Tensor:
        """Maps [B, C, h, w] of any floating dtype, standardised, float32."""
        return (maps.float() - self.mean) / self.std
