"""Tasks on maps that are made up, so that what is right is known: no store, no backbone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.heads.choice import Choice
from pipeline.heads.tasks.base import Pictures
from tests.labelled import spec_of

CHANNELS, SIDE = 4, 4
SPEC = spec_of(Path("nowhere"), Path("unused"))


def choice(groups: Sequence[str] = ("plain", "noisy"), *, pooled: bool = False) -> Choice:
    """Of one tap in some groups."""
    side = 1 if pooled else SIDE
    shapes = {f"{group}/tap": [CHANNELS, side, side] for group in groups}
    return Choice(tuple(groups), ("tap",), (), shapes)


def maps_of(ids: Tensor, chosen: Choice) -> dict[str, Tensor]:
    """Maps [B, C, h, w] that hold the class of each cell [B, h, w] as 1 in its channel, by name."""
    one_hot = torch.nn.functional.one_hot(ids, CHANNELS).movedim(-1, 1).float()
    return {name: one_hot.clone() for name in chosen.names}


def generators(count: int, seed: int = 0) -> list[torch.Generator]:
    """One for each item."""
    return [torch.Generator().manual_seed(1000 * seed + place) for place in range(count)]


def train(task: Any, head: Any, items: dict[str, Any], steps: int, rate: float = 0.05) -> list[float]:
    """Losses of some steps on one batch."""
    optimizer = torch.optim.AdamW(head.parameters(), lr=rate)
    losses = []
    for step in range(steps):
        batch = task.batch(items, generators(len(items["row"]), step))
        loss, _ = task.loss(head, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def gradients(head: torch.nn.Module) -> dict[str, Tensor]:
    """Of all parameters, none of which may be without."""
    found = {name: one.grad for name, one in head.named_parameters()}
    assert all(one is not None for one in found.values())
    return {name: one for name, one in found.items() if one is not None}


class Grey(Pictures):
    """A picture of one grey for each row."""

    def __getitem__(self, row: int) -> NDArray[np.uint8]:
        return np.full((16, 16, 3), 40 * row, np.uint8)
