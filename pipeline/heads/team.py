"""Processes that train one head together: each computes on its share of a batch, and gradients are averaged."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import distributed, nn


@dataclass(frozen=True)
class Team:
    """This process among those that train together."""

    rank: int = 0
    """From 0; the first one writes."""
    ranks: int = 1
    device: str = "cpu"
    """Where what they tell each other lies: of GPUs, on them."""

    @property
    def writes(self) -> bool:
        """Whether this process writes checkpoints, logs and results."""
        return self.rank == 0

    def average(self, parameters: Iterable[nn.Parameter]) -> None:
        """Bring gradients to their mean over all processes, which is that of the whole batch: shares are equal."""
        if self.ranks == 1:
            return
        gradients = [one.grad for one in parameters if one.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat)
        flat /= self.ranks
        for gradient, mean in zip(gradients, flat.split([one.numel() for one in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def agree(self, decision: bool) -> bool:
        """What the first process decides; a signal reaches one process before another."""
        if self.ranks == 1:
            return decision
        told = torch.tensor([float(decision)], device=self.device)
        distributed.broadcast(told, 0)
        return bool(told.item())

    def wait(self) -> None:
        """Until all are here."""
        if self.ranks > 1:
            distributed.barrier()
