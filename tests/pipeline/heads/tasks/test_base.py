from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.heads.networks.amalgamation import regulariser
from pipeline.heads.tasks import make
from pipeline.heads.tasks.base import MeanWeights, make_front, regularised
from schemas.head import Amalgamation
from tests.labelled import TASKS, spec_of
from tests.pipeline.heads.tasks.made import SPEC, choice


def test_the_loss_with_what_eq_5_adds() -> None:
    weights = torch.rand(3, 2, 2, 2).softmax(-1)
    wanted = Amalgamation(sparsity=0.5, diversity=0.25)
    loss, logged = regularised(torch.tensor(2.0), weights, wanted)
    added = regulariser(weights, 0.5, 0.25)
    assert loss.item() == pytest.approx(2 + added.item())
    assert logged["regulariser"].item() == pytest.approx(added.item()) and added < 0


def test_without_assigners_nothing_is_added() -> None:
    assert regularised(torch.tensor(2.0), None, Amalgamation()) == (torch.tensor(2.0), {})


def test_the_mean_weights_are_over_rows_not_over_batches() -> None:
    mean = MeanWeights()
    mean.add(torch.full((3, 1, 1, 2), 1.0))
    mean.add(torch.full((1, 1, 1, 2), 0.0))
    assert mean.mean is not None and mean.mean.tolist() == [[[0.75, 0.75]]]
    nothing = MeanWeights()
    nothing.add(None)
    assert nothing.mean is None


def test_the_front_is_the_specs() -> None:
    front = make_front(SPEC, choice())
    assert (front.parts, front.channels) == (2, [8])
    side_by_side = SPEC.model_copy(update={"amalgamation": Amalgamation(assigners=0)})
    assert make_front(side_by_side, choice(("a", "b", "c"))).parts == 3


@pytest.mark.parametrize("task", TASKS)
def test_a_specs_task(task: str) -> None:
    """First weights are torch's own generator's, so the same seed makes the same network."""
    spec = spec_of(Path("nowhere"), Path("unused"), task)
    classes = () if task == "correspondence" else ("a", "b", "c")
    made = make(spec, choice(pooled=task == "classification"), classes)
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(made.network().state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])
