"""Three readings of the paper's Eq. 1 and Eq. 2, which differ in what a feature is compared with.

literal   FEAT_ref is the plain feature of the clean latents at timestep 0, for every technique. A technique that scales
          features, as a ControlNet's residuals do, is taken for one that shifts them.
own       FEAT_ref is the same technique's feature of the clean latents at timestep 0, and both sides are a share of
          their own reference's total: what noise changes, whatever the technique itself does to a feature.
shape     as literal, after every map of Laplacian norms was divided by its mean: where a feature changes from place to
          place, not how strongly.

The anchor of all three is the plain feature at a stronger noise, beside the plain reference. All work on
||Laplacian(FEAT, i, j)||_2 alone (`pipeline.shift.laplacian_norms`, which states kernel and borders), so a feature is
kept as one map of float32 whatever its channels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.shift import score as equation_2
from pipeline.shift import shift_of_norms
from schemas.gate import Reading

READINGS: Final[tuple[Reading, ...]] = get_args(Reading)
Norms = NDArray[np.floating[Any]]
"""[images, h, w] of one tap."""


@dataclass(frozen=True)
class TapNorms:
    """One candidate's Laplacian norms at one tap."""

    clean: Norms
    """Of the clean latents at timestep 0."""
    noisy: Mapping[int, Norms]
    """By t."""


def diff(norms: Norms, own: Norms, plain: Norms, reading: Reading) -> NDArray[np.float64]:
    """Eq. 1 by a reading, [images]: 0 where nothing has shifted.

    Args:
        norms: of the feature in question.
        own: of the same technique's clean feature.
        plain: of the plain clean feature.
        reading: one of `READINGS`.
    """
    if reading == "shape":
        norms, plain = _shape(norms), _shape(plain)
    reference = own if reading == "own" else plain
    found: NDArray[np.float64] = shift_of_norms(_exact(norms), _exact(reference)).numpy()
    with np.errstate(divide="ignore", invalid="ignore"):
        return found / reference.sum((1, 2), dtype=np.float64) if reading == "own" else found


def score(norms: Norms, own: Norms, plain: TapNorms, anchor_t: int, reading: Reading) -> NDArray[np.float64]:
    """Eq. 2 by a reading, [images], in (-inf, 1]: 1 for no shift at all, 0 for the anchor's own.

    Args:
        norms: of the feature in question.
        own: of the same technique's clean feature.
        plain: the plain feature's, at `anchor_t` as well.
        anchor_t: noise of the anchor.
        reading: one of `READINGS`.

    Returns:
        NaN or -inf for images where the anchor has no shift, such as those of one colour.
    """
    anchor = diff(plain.noisy[anchor_t], plain.clean, plain.clean, reading)
    ours = diff(norms, own, plain.clean, reading)
    found: NDArray[np.float64] = equation_2(torch.from_numpy(ours), torch.from_numpy(anchor)).numpy()
    return found


def _exact(norms: Norms) -> Tensor:
    return torch.from_numpy(norms).double()


def _shape(norms: Norms) -> Norms:
    """Divided by their mean, so that it is 1; a constant feature stays 0."""
    mean = norms.mean((1, 2), keepdims=True, dtype=np.float64)
    return np.divide(norms, mean, out=np.zeros(norms.shape), where=mean > 0)
