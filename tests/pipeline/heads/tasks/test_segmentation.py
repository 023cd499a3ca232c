from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.heads.tasks.segmentation import SegmentationTask
from pipeline.labels import IGNORE
from tests.labelled import spec_of
from tests.pipeline.heads.shown import pixels
from tests.pipeline.heads.tasks import made

CLASSES = ["a", "b", "c"]


@pytest.fixture
def task() -> SegmentationTask:
    spec = spec_of(Path("nowhere"), Path("unused"), "segmentation")
    return SegmentationTask(spec, made.choice(), CLASSES)


def items(count: int = 3) -> dict[str, Any]:
    """Cells that say the class of their 4 x 4 pixels; the first row of pixels has none."""
    ids = torch.randint(3, (count, made.SIDE, made.SIDE), generator=torch.Generator().manual_seed(0))
    labels = ids.repeat_interleave(4, 1).repeat_interleave(4, 2).to(torch.int16)
    labels[:, 0] = IGNORE
    maps = made.maps_of(ids, made.choice())
    return {**maps, "label": labels, "row": list(range(count)), "key": list(map(str, range(count)))}


def test_learns_what_cells_say(task: SegmentationTask) -> None:
    head, batch = task.network(), items()
    losses = made.train(task, head, batch, 40, 0.01)
    assert losses[-1] < losses[0] / 2
    assert all(gradient.isfinite().all() for gradient in made.gradients(head).values())
    found = task.evaluate(head, [batch], "cpu")
    assert found.metrics["aAcc"] > 0.75 and set(found.by_class) == set(CLASSES)
    assert found.confusion is not None and int(found.confusion.sum()) == 3 * 15 * 16
    assert found.weights is not None and found.weights.shape == (1, 2, 2)


def test_pixels_without_a_class_cost_nothing(task: SegmentationTask) -> None:
    """They count in what the sum is divided by: processes whose shares of a batch have fewer classes must not weigh
    their pixels more."""
    head, batch = task.network(), items(1)
    half = dict(batch)
    half["label"] = batch["label"].clone()
    half["label"][:, :8] = IGNORE
    logits, _ = head(task.maps(batch), (16, 16))
    label = half["label"].long()
    expected = torch.nn.functional.cross_entropy(logits, label, ignore_index=IGNORE) / 2
    loss, logged = task.loss(head, task.batch(half, made.generators(1)))
    assert (loss - logged["regulariser"]).item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_batch_without_any_class_costs_nothing(task: SegmentationTask) -> None:
    head, batch = task.network(), items(2)
    batch["label"].fill_(IGNORE)
    loss, logged = task.loss(head, task.batch(batch, made.generators(2)))
    loss.backward()
    assert loss.item() == pytest.approx(logged["regulariser"].item())
    assert all(gradient.isfinite().all() for gradient in made.gradients(head).values())


def test_what_is_drawn(task: SegmentationTask) -> None:
    assert pixels(task.sheet(task.network(), items(2), made.Grey(), "cpu")).shape[0] > 32
