"""Counts over batches of what was predicted, and the scores that follow."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.heads.metrics import confusion, scores
from pipeline.heads.tasks.base import Evaluation, MeanWeights
from pipeline.labels import IGNORE


class Tally:
    """Adds up predictions by (true class, predicted class).

    Args:
        classes: their names by id.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self._classes = list(classes)
        self._counts = torch.zeros(len(classes), len(classes), dtype=torch.int64)
        self._weights = MeanWeights()

    def add(self, predicted: Tensor, truth: Tensor, weights: Tensor | None) -> None:
        """Ids of one shape, of pixels or of images, and the weights of the groups, [B, L, n, b] or None."""
        self._counts += confusion(predicted.cpu(), truth.cpu(), len(self._classes), IGNORE)
        self._weights.add(weights)

    def segmentation(self) -> Evaluation:
        """mIoU, aAcc and mAcc of pixels.

        Raises:
            ValueError: no pixel has a class.
        """
        found = scores(self._counts)
        metrics = {"mIoU": found.miou, "aAcc": found.aacc, "mAcc": found.macc}
        return Evaluation(metrics, self._named(found.iou), self._counts, weights=self._weights.mean)

    def classification(self) -> Evaluation:
        """Accuracy over images, and its mean over classes."""
        found = scores(self._counts)
        metrics = {"accuracy": found.aacc, "mean class accuracy": found.macc}
        return Evaluation(metrics, self._named(found.acc), self._counts, weights=self._weights.mean)

    def _named(self, values: Tensor) -> dict[str, float]:
        """By class, without those that are not in the truth."""
        pairs = zip(self._classes, values.tolist(), strict=True)
        return {name: value for name, value in pairs if value == value}
