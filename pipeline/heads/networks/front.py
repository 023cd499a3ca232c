"""What stands before every head: stored maps are standardised, brought to the head's resolutions, and amalgamated.

`aligned` gives one level, all taps' channels at the finest resolution, for heads that work cell by cell. `native` gives
one level a tap, from coarse to fine, for heads that work on a pyramid; each level has weight assigners of its own.
Attention features are standardised too, and concatenated to each level, not amalgamated, as in the paper.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.heads.networks.alignment import align
from pipeline.heads.networks.amalgamation import Amalgamation
from pipeline.heads.networks.standardisation import Moments, Standardisation
from schemas import taps as tap_names

Levels = Literal["aligned", "native"]


@dataclass(frozen=True)
class Fronted:
    """What a head takes, by level, from coarse to fine."""

    parts: list[Tensor]
    """float32 [B, p, c, h, w] a level: the mixture of each of p assigners; without assigners, each of p groups."""
    attention: list[Tensor]
    """float32 [B, a, h, w] a level, at the level's resolution; a is 0 where there are no attention features."""
    weights: Tensor | None
    """float32 [B, levels, assigners, groups]; None without assigners."""

    @property
    def levels(self) -> list[Tensor]:
        """Parts and attention side by side, [B, p * c + a, h, w] a level. Made anew each time: keep it."""
        flat = [part.flatten(1, 2) for part in self.parts]
        return [
            torch.cat([part, beside], 1) if beside.shape[1] else part
            for part, beside in zip(flat, self.attention, strict=True)
        ]


class Front(nn.Module):
    """From the stored maps of a batch to the levels of a head.

    Args:
        shapes: [C, h, w] by `group/tap`; [C, 1, 1] for pooled vectors.
        groups: feature groups to amalgamate.
        taps: sites, the same in every group.
        attention: attention features [C, h, w] to concatenate, as `group/tap`.
        assigners: n; 0 lays groups side by side. One group is always taken as it is: there is nothing to weigh.
        levels: `aligned` or `native`.

    Raises:
        ValueError: nothing to read, a name without a shape, a tap that differs in shape between groups, or one of maps
            [heads, query, key], which are over pairs of places and not over places.
    """

    channels: list[int]
    """Of each level, all side by side."""
    sizes: list[tuple[int, int]]
    """(h, w) of each level."""
    parts: int
    """p: how many mixtures, or groups, a level consists of."""
    part_channels: list[int]
    """c of each level's parts."""
    attention_channels: int
    """a."""

    def __init__(
        self,
        shapes: Mapping[str, Sequence[int]],
        groups: Sequence[str],
        taps: Sequence[str],
        *,
        attention: Sequence[str] = (),
        assigners: int = 2,
        levels: Levels = "aligned",
    ) -> None:
        super().__init__()
        _check(shapes, groups, taps, attention)
        self._groups, self._attention = list(groups), list(attention)
        by_size = sorted(taps, key=lambda tap: _cells(shapes[f"{groups[0]}/{tap}"]))
        self._taps = [[tap] for tap in by_size] if levels == "native" else [list(taps)]
        names = [f"{group}/{tap}" for group in groups for tap in taps] + list(attention)
        self._shapes = {name: tuple(shapes[name]) for name in names}
        self.standardise = nn.ModuleDict(
            {name: Standardisation(shape[0]) for name, shape in self._shapes.items()}
        )
        weighted = assigners > 0 and len(groups) > 1
        self.parts = assigners if weighted else len(groups)
        of_levels = [[self._shapes[f"{groups[0]}/{tap}"] for tap in some] for some in self._taps]
        self.part_channels = [sum(shape[0] for shape in some) for some in of_levels]
        finest = [max(some, key=_cells) for some in of_levels]
        self.sizes = [(shape[1], shape[2]) for shape in finest]
        self.attention_channels = sum(self._shapes[name][0] for name in attention)
        self.channels = [self.parts * some + self.attention_channels for some in self.part_channels]
        self.amalgamate = nn.ModuleList(
            Amalgamation(len(groups), some, assigners) for some in self.part_channels if weighted
        )

    @torch.no_grad()
    def fit(self, batches: Iterable[Mapping[str, Tensor]]) -> None:
        """Learn means and standard deviations, once, from maps of rows that the head is trained on.

        Before, maps are taken as they are.

        Raises:
            ValueError: no rows, values that are not finite, or maps of other shapes; names the map.
        """
        moments = {name: Moments() for name in self.standardise}
        for batch in batches:
            for name, one in moments.items():
                one.add(self._map(batch, name))
        for name, module in self.standardise.items():
            assert isinstance(module, Standardisation)
            try:
                module.take(moments[name])
            except ValueError as error:
                raise ValueError(f"feature {name!r}: {error}") from error

    def forward(self, maps: Mapping[str, Tensor]) -> Fronted:
        """Make a batch's maps [B, C, h, w], by `group/tap`, of any floating dtype, ready for a head.

        Raises:
            ValueError: a map that is missing, or has another shape.
        """
        standard = {name: module(self._map(maps, name)) for name, module in self.standardise.items()}
        parts = [
            self._stacked(standard, taps, size) for taps, size in zip(self._taps, self.sizes, strict=True)
        ]
        beside = [self._beside(standard, part) for part in parts]
        if not self.amalgamate:
            return Fronted(parts, beside, None)
        found = [amalgamate(part) for amalgamate, part in zip(self.amalgamate, parts, strict=True)]
        weights = torch.stack([one.weights for one in found], 1)
        return Fronted([one.mixtures for one in found], beside, weights)

    def _stacked(self, maps: Mapping[str, Tensor], taps: Sequence[str], size: tuple[int, int]) -> Tensor:
        """[B, groups, channels, h, w]."""
        return torch.stack(
            [align([maps[f"{group}/{tap}"] for tap in taps], size) for group in self._groups], 1
        )

    def _beside(self, maps: Mapping[str, Tensor], part: Tensor) -> Tensor:
        """Attention features at the resolution of a level's parts."""
        height, width = part.shape[-2:]
        if not self._attention:
            return part.new_empty(len(part), 0, height, width)
        return align([maps[name] for name in self._attention], (height, width))

    def _map(self, maps: Mapping[str, Tensor], name: str) -> Tensor:
        if name not in maps:
            raise ValueError(f"the batch has no map {name!r}, only {', '.join(sorted(maps)) or 'none'}")
        if tuple(maps[name].shape[1:]) != self._shapes[name]:
            raise ValueError(
                f"map {name!r} is {list(maps[name].shape)}; expected [B, {', '.join(map(str, self._shapes[name]))}]"
            )
        return maps[name]


def _cells(shape: Sequence[int]) -> int:
    return shape[1] * shape[2]


def _check(
    shapes: Mapping[str, Sequence[int]], groups: Sequence[str], taps: Sequence[str], attention: Sequence[str]
) -> None:
    if not groups or not taps:
        raise ValueError(
            f"there are {len(groups)} feature groups with {len(taps)} taps; a head reads at least one"
        )
    for name in [f"{group}/{tap}" for group in groups for tap in taps] + list(attention):
        if name not in shapes:
            raise ValueError(f"there is no {name!r}; known are {', '.join(sorted(shapes)) or 'none'}")
        if tap_names.kind(name.rpartition("/")[2]) == "attention" or len(shapes[name]) != 3:
            raise ValueError(
                f"{name!r} is {list(shapes[name])}, an attention map over pairs of places; a head takes features"
                " [C, h, w] over places, such as the tap 'attn'"
            )
    for tap in taps:
        for group in groups[1:]:
            one, other = f"{groups[0]}/{tap}", f"{group}/{tap}"
            if list(shapes[one]) != list(shapes[other]):
                raise ValueError(
                    f"{one!r} is {list(shapes[one])} and {other!r} is {list(shapes[other])}; groups are amalgamated"
                    " cell by cell, which takes equal shapes"
                )
