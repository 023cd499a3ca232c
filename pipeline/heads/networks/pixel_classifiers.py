"""Segmentation from few labelled images: an ensemble of small networks, each of which classifies single pixels by their
feature vectors, and which then vote.

This is the protocol of Baranchuk et al. 2022 ("Label-Efficient Semantic Segmentation with Diffusion Models"), which the
paper follows; layers are as wide as theirs. All members are trained at once, as batched matrices. There is no batch
norm: inputs are standardised already, and so one pixel's class does not depend on which others are in its batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.heads.networks.points import centres, sample_points

_CHUNK = 2**12
"""Pixels that are classified at once: few enough for a processor's cache, which is worth a factor of two."""


class PixelClassifiers(nn.Module):
    """M networks of three layers, each with first weights of its own.

    Args:
        channels: C of a pixel's feature vector.
        classes: how many.
        members: M.
        hidden: units of the two hidden layers; default: 128 and 32, from 30 classes on 256 and 128.
    """

    def __init__(
        self, channels: int, classes: int, members: int = 10, hidden: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        widths = [channels, *(hidden or ((128, 32) if classes < 30 else (256, 128))), classes]
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for inputs, outputs in pairwise(widths):
            bound = (6 / inputs) ** 0.5  # keeps the size of activations behind a ReLU (He et al. 2015)
            self.weights.append(nn.Parameter(torch.empty(members, inputs, outputs).uniform_(-bound, bound)))
            self.biases.append(nn.Parameter(torch.zeros(members, 1, outputs)))

    def forward(self, vectors: Tensor) -> Tensor:
        """Logits [M, P, classes] of vectors [M, P, C]: P pixels for each member."""
        return self._behind_first(torch.baddbmm(self.biases[0], vectors, self.weights[0]))

    def at(self, features: Tensor, points: Tensor) -> Tensor:
        """Logits [M, B * P, classes] of pixels of features [B, C, h, w], at points [B, M, P, 2]: P for each member.

        What `forward` gives of `sample_points`, but for rounding, and several times as fast: see `_first`.
        """
        members, count = points.shape[1:3]
        cells = self._first(features).unflatten(1, (members, -1)).flatten(0, 1)  # [B * M, units, h, w]
        units = sample_points(cells, points.flatten(0, 1)).view(len(features), members, count, -1)
        return self._behind_first(units.transpose(0, 1).flatten(1, 2))

    @torch.no_grad()
    def predict(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """The class that most members vote for, at each pixel of images of `size` = (H, W): int64 [B, H, W].

        Of classes with equally many votes, the one that members together find more probable.

        Args:
            features: [B, C, h, w]; pixels lie between its cells by bilinear interpolation.
        """
        return torch.stack([self._voted(one, size) for one in features])

    def _voted(self, features: Tensor, size: tuple[int, int]) -> Tensor:
        """Class ids [H, W] of features [C, h, w]."""
        cells = self._first(features[None])
        points = centres(size, features.device)
        return torch.cat([_vote(self._at(cells, some)) for some in points.split(_CHUNK)]).view(size)

    def _first(self, features: Tensor) -> Tensor:
        """What the first layer gives at the cells of features [B, C, h, w]: [B, M * units, h, w].

        Weighting channels and interpolating places commute, and the first layer has far fewer units than there are
        channels, and a map far fewer cells than an image has pixels.
        """
        by_unit = self.weights[0].transpose(1, 2).flatten(0, 1)
        bias = self.biases[0].flatten()[:, None]
        return (by_unit @ features.flatten(2) + bias).unflatten(2, features.shape[2:])

    def _at(self, cells: Tensor, points: Tensor) -> Tensor:
        """Logits [M, P, classes] at points [P, 2], of what the first layer gives, [1, M * units, h, w]."""
        units = sample_points(cells, points[None])[0].unflatten(1, (len(self.biases[0]), -1))
        return self._behind_first(units.transpose(0, 1))

    def _behind_first(self, units: Tensor) -> Tensor:
        for weight, bias in zip(self.weights[1:], self.biases[1:], strict=True):
            units = torch.baddbmm(bias, functional.relu(units), weight)
        return units


def ensemble_loss(logits: Tensor, labels: Tensor, ignore: int = 255) -> Tensor:
    """Sum over members of each one's mean cross entropy, so that none's gradient depends on another's pixels; a scalar.

    Args:
        logits: [M, P, classes].
        labels: int64 [M, P].
        ignore: label of pixels that do not count; a member without others has a loss of 0.
    """
    losses = functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=ignore, reduction="none"
    )
    counted = (labels != ignore).sum(1).clamp_min(1)
    return (losses.view(labels.shape).sum(1) / counted).sum()


def _vote(logits: Tensor) -> Tensor:
    """Class ids [P] by the majority of logits [M, P, classes]."""
    votes = functional.one_hot(logits.argmax(2), logits.shape[2]).sum(0)
    return (votes + logits.softmax(2).mean(0) / 2).argmax(1)  # less than a vote: decides between equals only
