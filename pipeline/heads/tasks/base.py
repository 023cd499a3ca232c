"""What the four tasks have in common: a network behind a front, a loss on batches, and what the network is worth."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.heads.choice import Choice
from pipeline.heads.networks.amalgamation import regulariser
from pipeline.heads.networks.front import Front, Levels
from schemas.head import Amalgamation, HeadSpec

Items = Mapping[str, Any]
"""A batch as the loader gives it: by `group/tap` a tensor [B, C, h, w], and the task's labels."""
Batch = Mapping[str, Tensor]
"""What the loss takes, where the network is."""


@dataclass
class Evaluation:
    """What a network is worth on some rows."""

    metrics: dict[str, float]
    """0 to 1; training is stopped by the first."""
    by_class: dict[str, float] = field(default_factory=dict)
    confusion: Tensor | None = None
    """int64 [K, K] by (truth, prediction)."""
    curves: dict[str, tuple[list[float], list[float]]] = field(default_factory=dict)
    """PCK by kind: values of alpha, and the share of points that are right."""
    weights: NDArray[np.float64] | None = None
    """Mean weights of the groups, [levels, assigners, groups]; None where none are assigned."""


class Pictures(Protocol):
    """Where pictures of stored rows come from."""

    def __getitem__(self, row: int) -> NDArray[np.uint8]:
        """RGB [H, W, 3], as the network saw it."""


class Head(nn.Module):
    """A network with the front that it stands behind."""

    front: Front


class Task(Protocol):
    """One task; made of a spec, of what is read of the store, and of the classes' names."""

    def network(self) -> Head:
        """The head, on the CPU, its first weights by torch's own generator."""

    def maps(self, items: Items) -> dict[str, Tensor]:
        """Stored maps of a batch by name, [B, C, h, w], which the front is standardised by."""

    def batch(self, items: Items, generators: Sequence[torch.Generator]) -> Batch:
        """What a training step takes of some items; each has a generator for what is random in it."""

    def loss(self, head: Any, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The task's loss, Eq. 5 included, and what else is worth logging; scalars."""

    def evaluate(self, head: Any, batches: Iterable[Items], device: str) -> Evaluation:
        """What the network is worth."""

    def sheet(self, head: Any, items: Items, pictures: Pictures, device: str) -> bytes:
        """A PNG file of some items: their pictures, the truth, and what the network says."""


def make_front(spec: HeadSpec, choice: Choice, levels: Levels = "aligned") -> Front:
    """The front of a spec's head."""
    return Front(
        choice.shapes,
        choice.groups,
        choice.taps,
        attention=choice.attention,
        assigners=spec.amalgamation.assigners,
        levels=levels,
    )


def regularised(
    loss: Tensor, weights: Tensor | None, wanted: Amalgamation
) -> tuple[Tensor, dict[str, Tensor]]:
    """A task's loss with what Eq. 5 adds to it, and that itself; weights are [B, L, n, b], or None."""
    if weights is None:
        return loss, {}
    added = regulariser(weights, wanted.sparsity, wanted.diversity)
    return loss + added, {"regulariser": added.detach()}


class MeanWeights:
    """The mean over rows of what assigners gave."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._rows = 0

    def add(self, weights: Tensor | None) -> None:
        """Weights [B, L, n, b] of some rows."""
        if weights is not None:
            total = weights.double().sum(0).cpu()
            self._sum = total if self._sum is None else self._sum + total
            self._rows += len(weights)

    @property
    def mean(self) -> NDArray[np.float64] | None:
        """[L, n, b]; None where there were none."""
        return None if self._sum is None else (self._sum / self._rows).numpy()


def on_device(maps: Mapping[str, Tensor], device: str) -> dict[str, Tensor]:
    """Maps where the network is."""
    return {name: value.to(device) for name, value in maps.items()}
