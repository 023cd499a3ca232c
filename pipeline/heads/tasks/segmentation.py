"""Segmentation with a decoder that sees whole images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.heads.choice import Choice
from pipeline.heads.networks.alignment import resized
from pipeline.heads.networks.decoder import UPerNet
from pipeline.heads.networks.front import Front
from pipeline.heads.tasks.base import (
    Batch,
    Head,
    Items,
    make_front,
    regularised,
)
from pipeline.heads.tasks.masks import MaskTask
from pipeline.labels import IGNORE
from schemas.head import HeadSpec, Segmentation


class SegmentationHead(Head):
    """A front of a level for each tap, and a decoder."""

    def __init__(self, front: Front, classes: int, width: int) -> None:
        super().__init__()
        self.front = front
        self.decoder = UPerNet(front.channels, classes, width)

    def forward(self, maps: Batch, size: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
        """Logits [B, classes, H, W] of maps by name, and the weights of the groups."""
        fronted = self.front(maps)
        return resized(self.decoder(fronted.levels), size), fronted.weights

    def predict(self, maps: Batch, size: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
        """Class ids int64 [B, H, W] of maps by name, and the weights of the groups."""
        logits, weights = self(maps, size)
        return logits.argmax(1), weights


class SegmentationTask(MaskTask):
    """See `Task`."""

    def __init__(self, spec: HeadSpec, choice: Choice, classes: Sequence[str]) -> None:
        assert isinstance(spec.task, Segmentation)
        super().__init__(choice, classes)
        self._spec, self._task = spec, spec.task

    def network(self) -> SegmentationHead:
        """See `Task`."""
        front = make_front(self._spec, self._choice, "native")
        return SegmentationHead(front, len(self._classes), self._task.width)

    def batch(self, items: Items, generators: Sequence[torch.Generator]) -> Batch:
        """Maps, and labels int64 [B, H, W]."""
        return {**self.maps(items), "label": items["label"].long()}

    def loss(self, head: SegmentationHead, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Task`."""
        label = batch["label"]
        logits, weights = head(batch, (label.shape[1], label.shape[2]))
        total = functional.cross_entropy(logits, label, ignore_index=IGNORE, reduction="sum")
        # By all pixels, as in mmsegmentation, so that a process's share of a batch weighs as it does in the whole.
        loss = total / label.numel()
        return regularised(loss, weights, self._spec.amalgamation)
