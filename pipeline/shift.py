"""Content shift as the paper measures it (Eq. 1), and the score that compares two shifts (Eq. 2).

Where noise has erased something, a network imagines it, and its features drift from the image. Both equations look at
how strongly features change from place to place, not at their values, so a feature that is brighter or has its
channels in another order has not shifted. A ControlNet's residuals scale features, though, and Eq. 1 takes that for
shift: its reference should be made with the same residuals.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def laplacian_norms(features: Tensor) -> Tensor:
    """||Laplacian(FEAT, i, j)||_2 of Eq. 1: the norm over channels of the Laplacian over the two spatial axes.

    The Laplacian is that of four neighbours, [[0, 1, 0], [1, -4, 1], [0, 1, 0]]. At borders the map is continued by
    its own edge, so that a constant map gives 0 everywhere.

    Args:
        features: [B, C, h, w], of any floating dtype.

    Returns:
        float32 [B, h, w], float64 for float64.

    Raises:
        ValueError: another number of axes.
    """
    if features.ndim != 4:
        raise ValueError(
            f"features are {list(features.shape)}; expected [B, C, h, w], so add the axis that is missing"
        )
    exact = features if features.dtype == torch.float64 else features.float()
    around = functional.pad(exact, (1, 1, 1, 1), mode="replicate")
    # As sums of differences, which are exactly 0 where neighbours are equal, whatever their size.
    vertical = (around[:, :, 2:, 1:-1] - exact) + (around[:, :, :-2, 1:-1] - exact)
    horizontal = (around[:, :, 1:-1, 2:] - exact) + (around[:, :, 1:-1, :-2] - exact)
    return (vertical + horizontal).norm(dim=1)


def shift(features: Tensor, reference: Tensor) -> Tensor:
    """Eq. 1: diff = sum_{i,j} | ||Laplacian(FEAT_ref, i, j)||_2 - ||Laplacian(FEAT, i, j)||_2 |.

    Args:
        features: [B, C, h, w].
        reference: of the same images without shift, such as at t = 0; the same h and w, maybe other channels.

    Returns:
        [B], at least 0, in the features' own unit.

    Raises:
        ValueError: maps of other images or another resolution.
    """
    return shift_of_norms(laplacian_norms(features), laplacian_norms(reference))


def relative_shift(features: Tensor, reference: Tensor) -> Tensor:
    """`shift` as a share of sum_{i,j} ||Laplacian(FEAT_ref, i, j)||_2, [B]: comparable between taps.

    NaN where the reference is constant and so is the feature, infinite where only the reference is.
    """
    of_reference = laplacian_norms(reference)
    return shift_of_norms(laplacian_norms(features), of_reference) / of_reference.sum((1, 2))


def score(diff: Tensor, anchor: Tensor) -> Tensor:
    """Eq. 2: Score = (diff_anchor - diff) / diff_anchor, in (-inf, 1].

    Args:
        diff: `shift` of the features in question, of any shape.
        anchor: `shift` of those that they are compared with, of the same shape.

    Returns:
        1 for no shift at all, 0 for the anchor's own, less than 0 for more. NaN or -inf where the anchor has none.
    """
    return (anchor - diff) / anchor


def shift_of_norms(norms: Tensor, of_reference: Tensor) -> Tensor:
    """`shift` of features whose `laplacian_norms` [B, h, w] are known, and those of their reference.

    Raises:
        ValueError: maps of other images or another resolution.
    """
    if norms.shape != of_reference.shape:
        raise ValueError(
            f"features have [B, h, w] = {list(norms.shape)}, their reference {list(of_reference.shape)}; take both from"
            " the same images and the same tap"
        )
    return (of_reference - norms).abs().sum((1, 2))
