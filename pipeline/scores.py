"""Score as data: how little each stored row has shifted (Eq. 2), so that heads can filter or weight rows by it.

    diff     shift of the group's feature, relative to the same group of clean latents at timestep 0
    anchor   that of a plain feature of the same seed at a stronger noise, relative to its own clean one
    Score    (anchor - diff) / anchor, the mean over the group's maps

Attention maps have no Score, and neither has `attn`: their channels are places or tokens. Nor have maps of one cell,
which change from no place to another. Padding counts, as the network saw it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.shift import relative_shift, score
from schemas import taps as tap_names
from schemas.groups import Group
from schemas.spec import Scores
from schemas.techniques import OF_NOISE, NoNoise

Shifts = Mapping[str, Tensor]
"""By tap, relative shift of each slot, [B]."""


def has_score(tap: str, shape: Sequence[int]) -> bool:
    """Whether a tap's features [C, h, w] are maps of channels over several places."""
    is_map = tap_names.kind(tap) == "map" and not tap_names.by_token(tap)
    return is_map and math.prod(shape[1:]) > 1


def clean(group: Group) -> Group:
    """A group of clean latents at timestep 0, with all its techniques but those about noise."""
    kept = [one for one in group.techniques if not isinstance(one, OF_NOISE)]
    return group.model_copy(
        update={"t": None, "timestep": 0, "techniques": [NoNoise(type="no-noise"), *kept]}
    )


def anchor(group: Group, scores: Scores) -> Group:
    """The plain group that a group is compared with: same picture, same noise, more of it."""
    return Group(
        name=group.name,
        taps=group.taps,
        prompt=scores.prompt,
        t=scores.anchor_t,
        seed=group.seed,
        latents=group.latents,
        flip=group.flip,
    )


def shifts(features: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> Shifts:
    """Of every tap that has a reference."""
    return {tap: relative_shift(value, reference[tap]) for tap, value in features.items() if tap in reference}


def mean_score(diffs: Shifts, anchors: Shifts) -> NDArray[np.float32]:
    """The mean over the taps of `diffs`, [B]; NaN where that of one tap is not finite, as where no noise shifts it."""
    found = torch.stack([score(diff.double(), anchors[tap].double()) for tap, diff in diffs.items()]).mean(0)
    return torch.where(found.isfinite(), found, torch.nan).float().cpu().numpy()
