"""Segmentation from few labelled images: pixel classifiers that vote, trained on pixels drawn anew in each step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.heads.choice import Choice
from pipeline.heads.networks.front import Front
from pipeline.heads.networks.pixel_classifiers import PixelClassifiers, ensemble_loss
from pipeline.heads.tasks.base import (
    Batch,
    Head,
    Items,
    make_front,
    regularised,
)
from pipeline.heads.tasks.masks import MaskTask
from pipeline.labels import IGNORE
from schemas.head import HeadSpec, LabelScarce

_POINTS, _CLASSES = "points", "classes"


class LabelScarceHead(Head):
    """A front of one level, and classifiers of its pixels."""

    def __init__(self, front: Front, classes: int, members: int) -> None:
        super().__init__()
        self.front = front
        self.classifiers = PixelClassifiers(front.channels[0], classes, members)

    def predict(self, maps: Batch, size: tuple[int, int]) -> tuple[Tensor, Tensor | None]:
        """Class ids int64 [B, H, W] of maps by name, and the weights of the groups."""
        fronted = self.front(maps)
        return self.classifiers.predict(fronted.levels[0], size), fronted.weights


class LabelScarceTask(MaskTask):
    """See `Task`."""

    def __init__(self, spec: HeadSpec, choice: Choice, classes: Sequence[str]) -> None:
        assert isinstance(spec.task, LabelScarce)
        super().__init__(choice, classes)
        self._spec, self._task = spec, spec.task

    def network(self) -> LabelScarceHead:
        """See `Task`."""
        front = make_front(self._spec, self._choice)
        return LabelScarceHead(front, len(self._classes), self._task.members)

    def batch(self, items: Items, generators: Sequence[torch.Generator]) -> Batch:
        """Maps, and of each image pixels that have a class: points [B, M * P, 2], classes [B, M * P]."""
        count = self._task.members * self._task.pixels
        drawn = [
            _drawn(label, count, generator)
            for label, generator in zip(items["label"], generators, strict=True)
        ]
        points = torch.stack([points for points, _ in drawn])
        return {**self.maps(items), _POINTS: points, _CLASSES: torch.stack([ids for _, ids in drawn])}

    def loss(self, head: LabelScarceHead, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Task`."""
        fronted = head.front(batch)
        shape = (self._task.members, self._task.pixels)
        logits = head.classifiers.at(fronted.levels[0], batch[_POINTS].unflatten(1, shape))
        classes = batch[_CLASSES].unflatten(1, shape).transpose(0, 1).flatten(1, 2)
        loss = ensemble_loss(logits, classes, IGNORE) / self._task.members
        return regularised(loss, fronted.weights, self._spec.amalgamation)


def _drawn(label: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Centres [count, 2] of pixels that have a class, and their classes; where none has one, all are IGNORE."""
    height, width = label.shape
    flat = label.flatten().long()
    able = (flat != IGNORE).nonzero()[:, 0]
    if not len(able):
        able = torch.arange(len(flat))
    pixels = able[torch.randint(len(able), (count,), generator=generator)]
    points = torch.stack([(pixels % width + 0.5) / width, (pixels // width + 0.5) / height], 1)
    return points, flat[pixels]
