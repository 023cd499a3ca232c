"""A linear probe: how much of a labelling can be read off frozen features by one linear layer, cell by cell.

Knows nothing of where features come from. The same seed gives the same numbers on the same machine with the same number
of threads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Training:
    """How the layer is trained: AdamW on cells drawn at random."""

    side: int = 32
    """Features are brought to this many cells a side (bilinear), labels too (nearest)."""
    steps: int = 500
    batch: int = 4096
    """Cells a step."""
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    rare: int = 500
    """A class's weight is (its cells + this) ** -0.5, so that rare classes count for more, but not for all."""


@dataclass(frozen=True)
class Probe:
    """A trained layer, with the standardisation of its inputs folded in."""

    weight: Tensor
    """float32 [classes, C]."""
    bias: Tensor
    """float32 [classes]."""
    side: int

    def predict(self, features: Tensor) -> Tensor:
        """The most likely class of each cell, int64 [n, side, side], of features [n, C, h, w]."""
        # Weighting channels and interpolating places commute, and there are fewer classes than channels.
        scores = functional.conv2d(features.float(), self.weight[:, :, None, None], self.bias)
        return _enlarged(scores, self.side).argmax(1)


def train(
    features: Tensor, labels: Tensor, classes: int, seed: int, training: Training | None = None
) -> Probe:
    """Train a probe.

    Args:
        features: [n, C, h, w], of any floating dtype.
        labels: integers [n, H, W], from 0 to classes - 1.
        classes: how many there are.
        seed: of the initial weights and of the order of cells.
        training: default: `Training()`.

    Raises:
        ValueError: shapes that do not belong together, or a label beyond the classes.
    """
    how = training or Training()
    _check(features, labels, classes)
    generator = torch.Generator().manual_seed(seed)
    maps, truth = features.float(), reduced(labels, how.side).flatten()
    mean, std = maps.mean((0, 2, 3)), maps.std((0, 2, 3)) + 1e-5
    maps = (maps - mean[:, None, None]) / std[:, None, None]
    # With channels innermost, the table is the enlarged maps themselves, and not a copy of so many bytes.
    enlarged = _enlarged(maps.contiguous(memory_format=torch.channels_last), how.side)
    table = enlarged.permute(0, 2, 3, 1).flatten(0, 2)
    weight, bias = _fitted(table, truth, _class_weights(truth, classes, how.rare), generator, how)
    return Probe(weight / std, bias - (weight / std) @ mean, how.side)


def reduced(labels: Tensor, side: int) -> Tensor:
    """Labels [n, H, W] at `side` x `side` cells: each takes that of the pixel in its middle; int64."""
    rows, columns = (((torch.arange(side) + 0.5) * length / side).long() for length in labels.shape[1:])
    return labels[:, rows][:, :, columns].long()


def confusion(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Cells by (true class, predicted class), int64 [classes, classes], from two integer tensors of one shape."""
    pairs = labels.flatten().long() * classes + predicted.flatten().long()
    return torch.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def mean_iou(counts: Tensor) -> float:
    """Mean intersection over union, 0 to 1, of a `confusion`; classes without a cell in truth are left out.

    Raises:
        ValueError: no cell at all.
    """
    there = counts.sum(1) > 0
    if not there.any():
        raise ValueError("the confusion has no cells; give at least one image with labels")
    hit = counts.diagonal().double()
    return float((hit / (counts.sum(0) + counts.sum(1) - hit))[there].mean())


def _enlarged(maps: Tensor, side: int) -> Tensor:
    return functional.interpolate(maps, size=(side, side), mode="bilinear", align_corners=False)


def _class_weights(truth: Tensor, classes: int, rare: int) -> Tensor:
    """float32 [classes], of mean 1."""
    weights = (torch.bincount(truth, minlength=classes).float() + rare) ** -0.5
    return weights / weights.mean()


def _fitted(
    table: Tensor, truth: Tensor, class_weights: Tensor, generator: torch.Generator, how: Training
) -> tuple[Tensor, Tensor]:
    """Weight [classes, C] and bias [classes] for a table [cells, C]."""
    channels = table.shape[1]
    # Features may come from inference mode, whose tensors take no part in a gradient.
    with torch.inference_mode(False), torch.enable_grad():
        table, truth, class_weights = table.clone(), truth.clone(), class_weights.clone()
        weight = torch.empty(len(class_weights), channels)
        weight.uniform_(-(channels**-0.5), channels**-0.5, generator=generator).requires_grad_()
        bias = torch.zeros(len(class_weights), requires_grad=True)
        optimizer = torch.optim.AdamW([weight, bias], lr=how.learning_rate, weight_decay=how.weight_decay)
        for _ in range(how.steps):
            drawn = torch.randint(len(table), (how.batch,), generator=generator)
            # Classes before cells: softmax over the last, short axis is ten times as slow.
            scores = weight @ table.index_select(0, drawn).T + bias[:, None]
            loss = functional.cross_entropy(scores[None], truth[drawn][None], class_weights)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return weight.detach(), bias.detach()


def _check(features: Tensor, labels: Tensor, classes: int) -> None:
    if features.ndim != 4 or labels.ndim != 3 or len(features) != len(labels):
        raise ValueError(
            f"features {list(features.shape)} with labels {list(labels.shape)}; expected [n, C, h, w] and [n, H, W] of"
            " the same n images"
        )
    least, most = int(labels.min()), int(labels.max())
    if least < 0 or most >= classes:
        raise ValueError(
            f"labels go from {least} to {most}; with {classes} classes they are 0 to {classes - 1}"
        )
