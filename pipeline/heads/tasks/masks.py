"""What both kinds of segmentation share: class ids over images, counted and drawn."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from pipeline.heads.choice import Choice
from pipeline.heads.pictures.sheets import masks_sheet
from pipeline.heads.tasks.base import Evaluation, Items, Pictures, on_device
from pipeline.heads.tasks.tally import Tally
from pipeline.labels import IGNORE


class MaskTask:
    """Of heads whose `predict(maps, size)` gives class ids int64 [B, H, W], and the weights of the groups."""

    def __init__(self, choice: Choice, classes: Sequence[str]) -> None:
        self._choice, self._classes = choice, classes

    def maps(self, items: Items) -> dict[str, Tensor]:
        """See `Task`."""
        return {name: items[name] for name in self._choice.names}

    @torch.inference_mode()
    def evaluate(self, head: Any, batches: Iterable[Items], device: str) -> Evaluation:
        """See `Task`."""
        tally = Tally(self._classes)
        for items in batches:
            predicted, weights = self._predicted(head, items, device)
            tally.add(predicted, items["label"], weights)
        return tally.segmentation()

    @torch.inference_mode()
    def sheet(self, head: Any, items: Items, pictures: Pictures, device: str) -> bytes:
        """See `Task`."""
        predicted, _ = self._predicted(head, items, device)
        return masks_sheet(
            [pictures[row] for row in items["row"]],
            list(items["label"].numpy()),
            list(predicted.cpu().numpy()),
            self._classes,
            IGNORE,
            items["key"],
        )

    def _predicted(self, head: Any, items: Items, device: str) -> tuple[Tensor, Tensor | None]:
        predicted: tuple[Tensor, Tensor | None] = head.predict(
            on_device(self.maps(items), device), tuple(items["label"].shape[1:])
        )
        return predicted
