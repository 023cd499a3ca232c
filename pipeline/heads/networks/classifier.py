"""Classification of images by one linear layer on pooled features: how much can be read off them, and no more."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Classifier(nn.Module):
    """One linear layer on the vectors of all levels, one behind the other.

    Args:
        channels: of each level.
        classes: how many.
    """

    def __init__(self, channels: Sequence[int], classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(sum(channels), classes)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Logits [B, classes] of levels: pooled vectors [B, C_l, 1, 1], or maps [B, C_l, h, w], which are pooled."""
        return self.linear(torch.cat([level.mean((2, 3)) for level in levels], 1))
