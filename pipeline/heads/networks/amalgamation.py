"""Amalgamation: several features of one image become one, by weights that the image itself decides (Eq. 3 to 5 of the
paper, its Appendix A.4).

Each of n weight assigners looks at the feature of every group and gives it a score; a softmax over the b groups makes
weights of the scores, and each assigner's result is the weighted sum. A weight is one number an image and group, the
same for all places. Assigners are small: what they cost is little beside what they weigh.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Amalgamated:
    """Features with their weights."""

    mixtures: Tensor
    """sum_i w_i^j r_i by assigner j, float32 [B, n, c, h, w]."""
    weights: Tensor
    """w_i^j, float32 [B, n, b]; sums to 1 over the b groups (Eq. 3)."""

    @property
    def features(self) -> Tensor:
        """r, the mixtures of all assigners side by side (Eq. 4), [B, n * c, h, w]."""
        return self.mixtures.flatten(1, 2)


class WeightAssigner(nn.Module):
    """f^j of Eq. 3 before the softmax: a small CNN from a feature r_i to its score, the same CNN for every group.

    Args:
        channels: c of the features.
        width: channels inside.
    """

    def __init__(self, channels: int, width: int = 16) -> None:
        super().__init__()
        self.places = nn.Sequential(
            nn.Conv2d(channels, width, 1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU()
        )
        # No bias: it would be added to every group's score, and the softmax takes it out again.
        self.score = nn.Linear(width, 1, bias=False)
        # Small, so that weights begin near even and no group is lost before anything is known of it. Not zero: from
        # equal weights no diversity can be gained, since the norm of their difference has no direction to grow in.
        nn.init.normal_(self.score.weight, std=0.01)

    def forward(self, features: Tensor) -> Tensor:
        """Scores [B] of features [B, c, h, w]."""
        return self.score(self.places(features).mean((2, 3)))[:, 0]


class Amalgamation(nn.Module):
    """Eq. 3 and 4.

    Args:
        groups: b, how many features an image has.
        channels: c of each.
        assigners: n; the paper takes fewer than three.

    Raises:
        ValueError: no group, or no assigner.
    """

    def __init__(self, groups: int, channels: int, assigners: int) -> None:
        super().__init__()
        if groups < 1 or assigners < 1:
            raise ValueError(
                f"amalgamation of {groups} groups by {assigners} assigners; at least one of each is needed"
            )
        self.groups, self.channels = groups, channels
        self.assigners = nn.ModuleList(WeightAssigner(channels) for _ in range(assigners))

    def forward(self, features: Tensor) -> Amalgamated:
        """Amalgamate features [B, b, c, h, w], standardised as a head takes them.

        Raises:
            ValueError: features of another number of groups or channels.
        """
        if features.ndim != 5 or features.shape[1:3] != (self.groups, self.channels):
            raise ValueError(
                f"features are {list(features.shape)}; expected [B, {self.groups}, {self.channels}, h, w]"
            )
        each = features.flatten(0, 1)
        scores = [assigner(each).view(-1, self.groups) for assigner in self.assigners]
        weights = torch.stack(scores, 1).softmax(-1)
        mixtures = torch.bmm(weights, features.flatten(2))
        return Amalgamated(mixtures.unflatten(2, features.shape[2:]), weights)


def regulariser(weights: Tensor, sparsity: float, diversity: float) -> Tensor:
    """What Eq. 5 adds to the task's loss: -g1 sum_j ||w^j|| - g2/2 sum_j sum_{k != j} ||w^j - w^k||; a scalar.

    Both norms are Euclidean. That of a weight vector, whose sum is 1, is greatest where one group has all of it; that
    of a difference, where two assigners choose different groups. Its gradient is zero where two are equal.

    Args:
        weights: [..., n, b]; the mean over all leading sizes is returned.
        sparsity: g1, at least 0.
        diversity: g2, at least 0.
    """
    assigners = weights.shape[-2]
    first, second = torch.triu_indices(assigners, assigners, offset=1, device=weights.device)
    norms = torch.linalg.vector_norm(weights, dim=-1).sum(-1)
    # Each pair once instead of twice takes the place of the half.
    distances = torch.linalg.vector_norm(weights[..., first, :] - weights[..., second, :], dim=-1).sum(-1)
    return -(sparsity * norms + diversity * distances).mean()
