"""Eq. 3 to 5, beside the formulas as they are written."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.heads.networks.amalgamation import Amalgamation, regulariser


def decided(groups: int, assigners: int) -> Amalgamation:
    """One whose weights are far from even."""
    amalgamation = Amalgamation(groups, 5, assigners)
    for assigner in amalgamation.assigners:
        assigner.score.weight.data.normal_(std=20)  # type: ignore[union-attr, operator]
    return amalgamation


def drawn_weights(images: int, assigners: int, groups: int, seed: int) -> Tensor:
    return torch.randn(images, assigners, groups, generator=torch.Generator().manual_seed(seed)).softmax(-1)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4))
def test_weights_sum_to_one_and_weigh(groups: int, assigners: int) -> None:
    """Eq. 3, and Eq. 4 as a loop."""
    features = torch.randn(3, groups, 5, 4, 3)
    found = decided(groups, assigners)(features)
    assert found.weights.shape == (3, assigners, groups)
    torch.testing.assert_close(found.weights.sum(-1), torch.ones(3, assigners))
    assert found.features.shape == (3, assigners * 5, 4, 3)
    for image in range(3):
        parts = [
            sum(found.weights[image, j, i] * features[image, i] for i in range(groups))
            for j in range(assigners)
        ]
        torch.testing.assert_close(found.features[image], torch.cat(parts))


def test_order_of_groups_does_not_matter() -> None:
    """One assigner looks at every group: permuted groups have permuted weights, and the same mixture."""
    amalgamation, features, order = decided(4, 2), torch.randn(3, 4, 5, 4, 3), [2, 0, 3, 1]
    found, permuted = amalgamation(features), amalgamation(features[:, order])
    assert found.weights.std() > 0.05
    torch.testing.assert_close(permuted.weights, found.weights[..., order])
    torch.testing.assert_close(permuted.features, found.features)


def test_weights_are_the_images_own() -> None:
    """Guards against a softmax, or a mean, over the batch."""
    amalgamation, features = decided(3, 2), torch.randn(4, 3, 5, 4, 3)
    together = amalgamation(features).weights
    torch.testing.assert_close(together[2:3], amalgamation(features[2:3]).weights)
    assert not torch.allclose(together[0], together[1])


def test_begins_near_even_but_not_equal() -> None:
    weights = Amalgamation(3, 5, 2)(torch.randn(4, 3, 5, 4, 3)).weights
    assert (weights - 1 / 3).abs().max() < 0.05
    assert not torch.equal(weights[:, 0], weights[:, 1])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.floats(0, 2), st.floats(0, 2), st.integers(0, 99))
def test_regulariser_is_equation_5(groups: int, assigners: int, g1: float, g2: float, seed: int) -> None:
    weights = drawn_weights(3, assigners, groups, seed)
    expected = 0.0
    for one in weights:
        sparsity = sum(float(one[j].norm()) for j in range(assigners))
        diversity = sum(
            float((one[j] - one[k]).norm()) for j in range(assigners) for k in range(assigners) if k != j
        )
        expected -= (g1 * sparsity + g2 / 2 * diversity) / len(weights)
    assert float(regulariser(weights, g1, g2)) == pytest.approx(expected, abs=1e-5)


def test_regulariser_takes_levels_too() -> None:
    weights = drawn_weights(6, 2, 3, 0)
    torch.testing.assert_close(regulariser(weights.view(2, 3, 2, 3), 1, 1), regulariser(weights, 1, 1))


def test_gradient_where_assigners_are_equal() -> None:
    """The norm of a difference has none at zero; a NaN there would destroy every weight."""
    weights = torch.full((2, 3, 4), 0.25, requires_grad=True)
    regulariser(weights, 1, 1).backward()
    assert weights.grad is not None and weights.grad.isfinite().all()


def test_regulariser_drives_to_sparse_and_diverse_weights() -> None:
    """The sign of Eq. 5: minimised alone, each assigner chooses one group, and not the same."""
    scores = (0.01 * torch.randn(1, 2, 3, generator=torch.Generator().manual_seed(0))).requires_grad_()
    optimizer = torch.optim.Adam([scores], lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        regulariser(scores.softmax(-1), 1, 1).backward()
        optimizer.step()
    weights = scores.softmax(-1)[0]
    assert (weights.max(-1).values > 0.9).all()
    assert weights[0].argmax() != weights[1].argmax()


def test_learns_which_group_helps() -> None:
    """Gradients reach the assigners through the mixture: noise in one group is weighted away."""
    amalgamation = Amalgamation(2, 5, 1)
    optimizer = torch.optim.Adam(amalgamation.parameters(), lr=0.02)
    for _ in range(60):
        clean = torch.randn(8, 5, 4, 4)
        features = torch.stack([clean + 3 * torch.randn(8, 5, 4, 4), clean], 1)
        found = amalgamation(features)
        optimizer.zero_grad()
        (found.features - clean).square().mean().backward()
        optimizer.step()
    assert found.weights[:, 0, 1].mean() > 0.8


def test_one_group_is_taken_as_it_is() -> None:
    features = torch.randn(2, 1, 5, 4, 3)
    found = Amalgamation(1, 5, 1)(features)
    assert torch.equal(found.features, features[:, 0])


def test_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="0 groups by 1 assigners"):
        Amalgamation(0, 5, 1)
    with pytest.raises(ValueError, match=r"features are \[2, 3, 5, 4, 4\]; expected \[B, 2, 5, h, w\]"):
        Amalgamation(2, 5, 1)(torch.zeros(2, 3, 5, 4, 4))
