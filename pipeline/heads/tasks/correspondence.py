"""Semantic correspondence: descriptors whose nearest neighbour in another image shows the same."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from pipeline.heads.choice import Choice
from pipeline.heads.metrics import Pck, pck, right
from pipeline.heads.networks.correspondence import ConvHead, matching_loss, nearest
from pipeline.heads.networks.front import Front
from pipeline.heads.pairs import EXTENTS, POINTS, SCALE, SHIFT, TRUTH, valid
from pipeline.heads.pictures.match_sheets import Pair, matches_sheet
from pipeline.heads.tasks.base import (
    Batch,
    Evaluation,
    Head,
    Items,
    MeanWeights,
    Pictures,
    make_front,
    on_device,
    regularised,
)
from schemas.head import Correspondence, HeadSpec

ALPHAS: Final = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2)
"""Of the curve."""
KINDS: Final = ("img", "bbox")
"""What alpha is a share of: the longer side of the image, or of the object's box; as `EXTENTS` has them."""


@dataclass(frozen=True)
class _Points:
    """Predictions of all pairs, one behind the other."""

    predicted: Tensor
    """[n, 2], pixels of the target's original."""
    truth: Tensor
    extents: Tensor
    """[n, 2], by kind."""
    pairs: Tensor
    """Number of the pair, [n]."""
    categories: list[str]

    @classmethod
    def of(cls, items: Items, place: int, shares: Tensor, number: int) -> _Points:
        """Those of one pair of a batch, by what was found for them."""
        count, truth = len(shares), items[TRUTH][place]
        return cls(
            items[SHIFT][place] + items[SCALE][place] * shares,
            truth[valid(truth)],
            items[EXTENTS][place].expand(count, 2),
            torch.full((count,), number),
            [items["category"][place]] * count,
        )

    @classmethod
    def joined(cls, pairs: Sequence[_Points]) -> _Points:
        """Those of several pairs."""
        return cls(
            torch.cat([one.predicted for one in pairs]),
            torch.cat([one.truth for one in pairs]),
            torch.cat([one.extents for one in pairs]),
            torch.cat([one.pairs for one in pairs]),
            [category for one in pairs for category in one.categories],
        )

    def pck(self, kind: str, alphas: Sequence[float]) -> Pck:
        """Of all points."""
        extents = self.extents[:, KINDS.index(kind)]
        return pck(self.predicted, self.truth, extents, self.pairs, alphas)

    def by_category(self, alpha: float) -> dict[str, float]:
        """Shares of points within alpha of the box."""
        hit = right(self.predicted, self.truth, self.extents[:, KINDS.index("bbox")], alpha)
        places: dict[str, list[int]] = {}
        for place, category in enumerate(self.categories):
            places.setdefault(category, []).append(place)
        return {category: float(hit[places[category]].double().mean()) for category in sorted(places)}


class CorrespondenceHead(Head):
    """A front of one level, and convolutions behind it or nothing."""

    def __init__(self, front: Front, width: int | None) -> None:
        super().__init__()
        self.front = front
        self.convolutions = (
            None
            if width is None
            else ConvHead(front.parts, front.part_channels[0], front.attention_channels, width)
        )

    def forward(self, maps: Batch) -> tuple[Tensor, Tensor | None]:
        """Descriptors [B, D, h, w] of maps by name, and the weights of the groups."""
        fronted = self.front(maps)
        if self.convolutions is None:
            return fronted.levels[0], fronted.weights
        return self.convolutions(fronted.parts[0], fronted.attention[0]), fronted.weights


class CorrespondenceTask:
    """See `Task`. A batch's maps are of sources and targets in turn, [2 * B, C, h, w]."""

    def __init__(self, spec: HeadSpec, choice: Choice, classes: Sequence[str]) -> None:
        assert isinstance(spec.task, Correspondence) and not classes
        self._spec, self._task, self._choice = spec, spec.task, choice

    def network(self) -> CorrespondenceHead:
        """See `Task`."""
        width = self._task.channels if self._task.head == "conv" else None
        return CorrespondenceHead(make_front(self._spec, self._choice), width)

    def maps(self, items: Items) -> dict[str, Tensor]:
        """See `Task`."""
        return {name: items[name].flatten(0, 1) for name in self._choice.names}

    def batch(self, items: Items, generators: Sequence[torch.Generator]) -> Batch:
        """Maps, and points [B, 2, N, 2]."""
        return {**self.maps(items), POINTS: items[POINTS]}

    def loss(self, head: CorrespondenceHead, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """See `Task`."""
        found, weights = head(batch)
        losses = []
        for (source, target), points in zip(found.unflatten(0, (-1, 2)), batch[POINTS], strict=True):
            here, there = points[:, valid(points).all(0)]
            losses.append(matching_loss(source, target, here, there, self._task.temperature))
        return regularised(torch.stack(losses).mean(), weights, self._spec.amalgamation)

    @torch.inference_mode()
    def evaluate(self, head: CorrespondenceHead, batches: Iterable[Items], device: str) -> Evaluation:
        """See `Task`. PCK over all points is the main figure; the mean over pairs stands beside it."""
        pairs: list[_Points] = []
        weights = MeanWeights()
        for items in batches:
            shares, assigned = self._shares(head, items, device)
            weights.add(assigned)
            pairs += [
                _Points.of(items, place, found, len(pairs) + place) for place, found in enumerate(shares)
            ]
        return self._scored(_Points.joined(pairs), weights)

    @torch.inference_mode()
    def sheet(self, head: CorrespondenceHead, items: Items, pictures: Pictures, device: str) -> bytes:
        """See `Task`."""
        shares, _ = self._shares(head, items, device)
        drawn = []
        for place, ((source, target), found) in enumerate(zip(items["rows"], shares, strict=True)):
            here, there = pictures[source], pictures[target]
            points = _Points.of(items, place, found, 0)
            hit = right(
                points.predicted, points.truth, points.extents[:, KINDS.index("bbox")], self._task.alpha
            )
            known = items[POINTS][place]
            known = known[:, valid(known).all(0)].numpy()
            sides = [np.array(picture.shape[1::-1]) for picture in (here, there)]
            drawn.append(
                Pair(
                    here,
                    there,
                    known[0] * sides[0],
                    known[1] * sides[1],
                    found.numpy() * sides[1],
                    hit.numpy(),
                    items["pair"][place],
                )
            )
        return matches_sheet(drawn)

    def _shares(
        self, head: CorrespondenceHead, items: Items, device: str
    ) -> tuple[list[Tensor], Tensor | None]:
        """Of each pair, where the source's points are in the target: shares float64 [n, 2]; and the groups' weights."""
        found, weights = head(on_device(self.maps(items), device))
        shares = []
        for (source, target), points in zip(found.unflatten(0, (-1, 2)), items[POINTS], strict=True):
            here = points[0, valid(points[0])].to(device)
            shares.append(nearest(source, here, target).double().cpu())
        return shares, weights

    def _scored(self, points: _Points, weights: MeanWeights) -> Evaluation:
        alpha = self._task.alpha
        main = {kind: points.pck(kind, [alpha]) for kind in KINDS}
        curves = {kind: points.pck(kind, ALPHAS) for kind in KINDS}
        return Evaluation(
            {f"PCK@{alpha:g} {kind}": one.per_point[0] for kind, one in main.items()}
            | {f"PCK@{alpha:g} {kind}, mean over pairs": one.per_image[0] for kind, one in main.items()},
            points.by_category(alpha),
            curves={kind: (list(one.alphas), list(one.per_point)) for kind, one in curves.items()},
            weights=weights.mean,
        )
