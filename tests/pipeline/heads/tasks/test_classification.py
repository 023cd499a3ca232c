from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.heads.tasks.classification import ClassificationTask
from tests.labelled import spec_of
from tests.pipeline.heads.shown import pixels
from tests.pipeline.heads.tasks import made

CLASSES = ["a", "b", "c"]


@pytest.fixture
def task() -> ClassificationTask:
    return ClassificationTask(
        spec_of(Path("nowhere"), Path("unused"), "classification"), made.choice(pooled=True), CLASSES
    )


def items(labels: list[int]) -> dict[str, Any]:
    """Vectors that say the class."""
    ids = torch.tensor(labels)
    maps = made.maps_of(ids[:, None, None], made.choice(pooled=True))
    return {**maps, "label": ids, "row": list(range(len(labels))), "key": list(map(str, labels))}


def test_learns_what_vectors_say(task: ClassificationTask) -> None:
    head, batch = task.network(), items([0, 1, 2, 1])
    losses = made.train(task, head, batch, 60, 0.1)
    assert losses[-1] < losses[0] / 4
    assert all(
        gradient.abs().sum() > 0 for name, gradient in made.gradients(head).items() if "linear" in name
    )
    found = task.evaluate(head, [batch, items([2])], "cpu")
    assert found.metrics == {"accuracy": 1.0, "mean class accuracy": 1.0}
    assert found.confusion is not None and found.confusion.diagonal().tolist() == [1, 2, 2]
    assert found.weights is not None and found.weights.sum(-1) == pytest.approx(1)


def test_what_is_drawn(task: ClassificationTask) -> None:
    assert pixels(task.sheet(task.network(), items([0, 2]), made.Grey(), "cpu")).shape[0] > 32
