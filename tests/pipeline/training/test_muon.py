from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pipeline.training.muon import Muon, is_matrix, orthogonalised


@settings(deadline=None)
@given(st.integers(2, 24), st.integers(2, 24), st.integers(0, 99))
def test_directions_become_equally_long(rows: int, columns: int, seed: int) -> None:
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    left, lengths, right = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonalised(matrix)
    assert found.shape == matrix.shape
    along = torch.einsum("ir,ij,rj->r", left, found, right)
    clear = lengths > 0.05 * lengths[0]  # smaller ones need more iterations
    assert along[clear].min() > 0.6
    assert along.max() < 1.3


def test_what_is_a_matrix() -> None:
    network = nn.ModuleDict({"conv": nn.Conv2d(2, 3, 3), "token_embedding": nn.Embedding(4, 2)})
    found = {name for name, value in network.named_parameters() if is_matrix(name, value)}
    assert found == {"conv.weight"}


def test_a_step_is_as_large_as_adams() -> None:
    """So that a learning rate means the same: a fifth of it, root mean square, over a matrix."""
    layer = nn.Conv2d(16, 16, 3, bias=False)
    before = layer.weight.detach().clone()
    optimizer = Muon({"weight": layer.weight}, 0.01, 0.0)
    layer.weight.grad = torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    rms = (layer.weight - before).square().mean().sqrt().item()
    assert rms == pytest.approx(0.2 * 0.01, rel=0.3)


def test_vectors_move_as_with_adam() -> None:
    ours, theirs = nn.Parameter(torch.ones(5)), nn.Parameter(torch.ones(5))
    muon = Muon({"bias": ours}, 0.01, 0.1)
    adam = torch.optim.Adam([theirs], lr=0.01, betas=(0.9, 0.99))
    for step in range(5):
        gradient = torch.randn(5, generator=torch.Generator().manual_seed(step))
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        muon.step()
        adam.step()
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_badly_scaled_problems_are_no_slower() -> None:
    """A matrix whose columns matter in very different measure, beside plain descent."""

    def left_after(optimizer: torch.optim.Optimizer, weight: nn.Parameter) -> float:
        for step in range(150):
            for group in optimizer.param_groups:
                group["lr"] = 0.05 * (1 - step / 150)
            error = ((weight - goal) * scales).square().sum()
            optimizer.zero_grad()
            error.backward()
            optimizer.step()
        return (weight - goal).norm().item()

    goal = torch.randn(8, 8, generator=torch.Generator().manual_seed(1)) / 3
    scales = torch.logspace(-1.5, 0, 8)
    muon, descent = nn.Parameter(torch.zeros(8, 8)), nn.Parameter(torch.zeros(8, 8))
    plain = left_after(torch.optim.SGD([descent], lr=0.05), descent)
    assert left_after(Muon({"weight": muon}, 0.05, 0.0), muon) < 0.5 * plain
