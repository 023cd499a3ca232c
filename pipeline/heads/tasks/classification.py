"""One class an image, by a linear layer on pooled vectors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from pipeline.heads.choice import Choice
from pipeline.heads.networks.classifier import Classifier
from pipeline.heads.networks.front import Front
from pipeline.heads.pictures.sheets import classes_sheet
from pipeline.heads.tasks.base import (
    Batch,
    Evaluation,
    Head,
    Items,
    Pictures,
    make_front,
    on_device,
    regularised,
)
from pipeline.heads.tasks.tally import Tally
from schemas.head import Classification, HeadSpec


class ClassificationHead(Head):
    """A front of one level, and a linear layer."""

    def __init__(self, front: Front, classes: int) -> None:
        super().__init__()
        self.front = front
        self.classifier = Classifier(front.channels, classes)

    def forward(self, maps: Batch) -> tuple[Tensor, Tensor | None]:
        """Logits [B, classes] of pooled vectors [B, C, 1, 1] by name, and the weights of the groups."""
        fronted = self.front(maps)
        return self.classifier(fronted.levels), fronted.weights


class ClassificationTask:
    """See `Task`."""

    def __init__(self, spec: HeadSpec, choice: Choice, classes: Sequence[str]) -> None:
        assert isinstance(spec.task, Classification)
        self._spec, self._choice, self._classes = spec, choice, classes

    def network(self) -> ClassificationHead:
        """See `Task`."""
        return ClassificationHead(make_front(self._spec, self._choice), len(self._classes))

    def maps(self, items: Items) -> dict[str, Tensor]:
        """See `Task`."""
        return {name: items[name] for name in self._choice.names}

    def batch(self, items: Items, generators: Sequence[torch.Generator]) -> Batch:
        """Vectors, and class ids int64 [B]."""
        return {**self.maps(items), "label": items["label"].long()}

    def loss(self, head: ClassificationHead, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Task`."""
        logits, weights = head(batch)
        loss = functional.cross_entropy(logits, batch["label"])
        return regularised(loss, weights, self._spec.amalgamation)

    @torch.inference_mode()
    def evaluate(self, head: ClassificationHead, batches: Iterable[Items], device: str) -> Evaluation:
        """See `Task`."""
        tally = Tally(self._classes)
        for items in batches:
            logits, weights = head(on_device(self.maps(items), device))
            tally.add(logits.argmax(1), items["label"].long(), weights)
        return tally.classification()

    @torch.inference_mode()
    def sheet(self, head: ClassificationHead, items: Items, pictures: Pictures, device: str) -> bytes:
        """See `Task`."""
        logits, _ = head(on_device(self.maps(items), device))
        shares = logits.softmax(1).cpu().numpy()
        return classes_sheet(
            [pictures[row] for row in items["row"]], shares, self._classes, items["label"].tolist()
        )
