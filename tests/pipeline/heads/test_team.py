"""What processes tell each other; the exchange itself is torch's, and real in test_parallel."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.heads import team as module
from pipeline.heads.team import Team


class Other:
    """Another process, in place of torch.distributed: it has its own gradients, and decides if it is the first."""

    def __init__(self, gradients: list[Tensor], decision: bool = False) -> None:
        self.flat, self.decision, self.barriers = torch.cat([one.flatten() for one in gradients]), decision, 0

    def all_reduce(self, given: Tensor) -> None:
        given += self.flat

    def broadcast(self, given: Tensor, source: int) -> None:
        assert source == 0
        given.fill_(float(self.decision))

    def barrier(self) -> None:
        self.barriers += 1


def parameters(*gradients: Tensor | None) -> list[nn.Parameter]:
    found = [nn.Parameter(torch.zeros(2, 3)) for _ in gradients]
    for parameter, gradient in zip(found, gradients, strict=True):
        parameter.grad = gradient
    return found


def test_gradients_become_their_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place and in their own shapes; a parameter without one stays without."""
    theirs = [torch.full((2, 3), 4.0), torch.arange(6.0).view(2, 3)]
    monkeypatch.setattr(module, "distributed", Other(theirs))
    first, without, second = parameters(torch.full((2, 3), 2.0), None, torch.zeros(2, 3))
    Team(0, 2).average([first, without, second])
    assert first.grad is not None and torch.equal(first.grad, torch.full((2, 3), 3.0))
    assert second.grad is not None and torch.equal(second.grad, torch.arange(6.0).view(2, 3) / 2)
    assert without.grad is None


@pytest.mark.parametrize("decision", [True, False])
def test_all_do_what_the_first_decides(decision: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Other([torch.zeros(1)], decision)
    monkeypatch.setattr(module, "distributed", other)
    assert Team(1, 2).agree(not decision) is decision
    Team(1, 2).wait()
    assert other.barriers == 1
    assert [Team(rank, 2).writes for rank in range(2)] == [True, False]


def test_one_alone_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    nobody: Any = None
    monkeypatch.setattr(module, "distributed", nobody)
    (alone,) = parameters(torch.ones(2, 3))
    team = Team()
    team.average([alone])
    team.wait()
    assert alone.grad is not None and torch.equal(alone.grad, torch.ones(2, 3))
    assert team.agree(True) and not team.agree(False) and team.writes
