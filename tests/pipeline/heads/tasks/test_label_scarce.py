from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.heads.tasks.label_scarce import LabelScarceTask
from pipeline.labels import IGNORE
from tests.labelled import spec_of
from tests.pipeline.heads.shown import pixels
from tests.pipeline.heads.tasks import made

CLASSES = ["a", "b", "c"]
MEMBERS, PIXELS = 3, 20


def make(groups: tuple[str, ...] = ("plain", "noisy")) -> LabelScarceTask:
    task = {"members": MEMBERS, "pixels": PIXELS}
    spec = spec_of(Path("nowhere"), Path("unused"), "label-scarce", task=task)
    return LabelScarceTask(spec, made.choice(groups), CLASSES)


def items(count: int = 3, groups: tuple[str, ...] = ("plain", "noisy")) -> dict[str, Any]:
    """Cells that say the class of their 4 x 4 pixels; the left half of pixels has none."""
    ids = torch.randint(3, (count, made.SIDE, made.SIDE), generator=torch.Generator().manual_seed(0))
    labels = ids.repeat_interleave(4, 1).repeat_interleave(4, 2).to(torch.int16)
    labels[:, :, :8] = IGNORE
    maps = made.maps_of(ids, made.choice(groups))
    return {**maps, "label": labels, "row": list(range(count)), "key": list(map(str, range(count)))}


def test_drawn_pixels_have_a_class_which_is_theirs() -> None:
    task, given = make(), items()
    batch = task.batch(given, made.generators(3))
    assert batch["points"].shape == (3, MEMBERS * PIXELS, 2) and batch["classes"].shape == (
        3,
        MEMBERS * PIXELS,
    )
    places = (batch["points"] * 16 - 0.5).round().long()
    assert torch.allclose((places + 0.5) / 16, batch["points"])  # centres of pixels
    for label, place, classes in zip(given["label"], places, batch["classes"], strict=True):
        assert torch.equal(label[place[:, 1], place[:, 0]].long(), classes)
    assert (batch["classes"] != IGNORE).all()
    assert len(batch["points"][0].unique(dim=0)) > PIXELS


def test_an_items_pixels_are_its_own_generators() -> None:
    """So that they do not depend on which process computes the item, nor on what else is in its batch."""
    task, given = make(), items()
    whole = task.batch(given, made.generators(3))
    last = {name: value[2:] for name, value in given.items()}
    assert torch.equal(task.batch(last, made.generators(3)[2:])["points"][0], whole["points"][2])
    assert not torch.equal(task.batch(last, made.generators(1))["points"][0], whole["points"][2])


def test_learns_what_cells_say() -> None:
    task, batch = make(), items()
    head = task.network()
    losses = made.train(task, head, batch, 40, 0.02)
    assert losses[-1] < losses[0] / 2
    found = task.evaluate(head, [batch], "cpu")
    assert found.metrics["aAcc"] > 0.75 and set(found.by_class) == set(CLASSES)
    assert found.confusion is not None and int(found.confusion.sum()) == 3 * 16 * 8
    assert found.weights is not None and found.weights.shape == (1, 2, 2)


def test_an_image_without_any_class_costs_nothing() -> None:
    """It gives no gradient, beside others as alone; with one group nothing else has one either."""
    task, both = make(("plain",)), items(2, ("plain",))
    head = task.network()
    both["label"][1] = IGNORE
    loss, _ = task.loss(head, task.batch(both, made.generators(2)))
    first = {name: value[:1] for name, value in both.items()}
    alone, _ = task.loss(head, task.batch(first, made.generators(1)))
    assert loss.item() == pytest.approx(alone.item(), rel=1e-5)
    nothing, _ = task.loss(
        head, task.batch({name: value[1:] for name, value in both.items()}, made.generators(1))
    )
    nothing.backward()
    assert nothing.item() == 0 and not any(one.any() for one in made.gradients(head).values())


def test_what_is_drawn() -> None:
    task = make()
    assert pixels(task.sheet(task.network(), items(2), made.Grey(), "cpu")).shape[0] > 32
