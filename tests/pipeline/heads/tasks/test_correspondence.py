"""Correspondence on maps whose cells are told apart, so that the right answers are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.heads.networks.points import centres
from pipeline.heads.pairs import EXTENTS, POINTS, SCALE, SHIFT, TRUTH
from pipeline.heads.tasks.correspondence import CorrespondenceHead, CorrespondenceTask
from tests.labelled import spec_of
from tests.pipeline.heads.shown import pixels
from tests.pipeline.heads.tasks import made

CELLS = made.SIDE**2
SIZE = torch.tensor([80.0, 40.0], dtype=torch.float64)
"""Width and height of a target in pixels."""


def make(groups: tuple[str, ...] = ("plain",), **task: Any) -> CorrespondenceTask:
    spec = spec_of(Path("nowhere"), Path("unused"), "correspondence", task={"head": "nn", **task})
    shapes = {f"{group}/tap": [CELLS, made.SIDE, made.SIDE] for group in groups}
    chosen = made.choice(groups)
    return CorrespondenceTask(spec, type(chosen)(chosen.groups, chosen.taps, (), shapes), ())


def items(moved: list[list[int]], counts: list[int], groups: tuple[str, ...] = ("plain",)) -> dict[str, Any]:
    """Pairs in which the source's cell n shows what the target's cell `moved[n]` shows.

    Of each pair so many cells are keypoints; the others are filled up. Cells are 20 x 10 pixels large, and answers lie
    within half a cell of the truth; so images are said to be 400 pixels long, and boxes 100.
    """
    some = centres((made.SIDE, made.SIDE)).double()
    most, found = max(counts), []
    for to, count in zip(moved, counts, strict=True):
        source = torch.eye(CELLS).view(CELLS, made.SIDE, made.SIDE)
        target = torch.zeros(CELLS, CELLS)
        target[torch.arange(CELLS), torch.tensor(to)] = 1
        points = torch.full((2, most, 2), torch.nan)
        points[0, :count], points[1, :count] = some[:count].float(), some[to[:count]].float()
        maps = torch.stack([source, target.view_as(source)])
        found.append((maps, points, points[1].double() * SIZE))
    return {
        **{f"{group}/tap": torch.stack([maps for maps, _, _ in found]) for group in groups},
        POINTS: torch.stack([points for _, points, _ in found]),
        TRUTH: torch.stack([truth for _, _, truth in found]),
        EXTENTS: torch.tensor([[400.0, 100.0]] * len(found), dtype=torch.float64),
        SHIFT: torch.zeros(len(found), 2, dtype=torch.float64),
        SCALE: SIZE.expand(len(found), 2),
        "rows": [(1, 2)] * len(found),
        "row": list(range(len(found))),
        "category": ["cat", "train"][: len(found)],
        "pair": [f"pairs.jsonl:{place}" for place in range(len(found))],
    }


SAME, BACKWARDS = list(range(CELLS)), list(range(CELLS))[::-1]


def test_nearest_neighbours_need_no_training() -> None:
    task = make()
    head = task.network()
    assert not list(head.parameters())
    found = task.evaluate(head, [items([SAME, BACKWARDS], [5, 3])], "cpu")
    assert found.metrics == {
        "PCK@0.1 img": 1.0,
        "PCK@0.1 bbox": 1.0,
        "PCK@0.1 img, mean over pairs": 1.0,
        "PCK@0.1 bbox, mean over pairs": 1.0,
    }
    assert found.by_class == {"cat": 1.0, "train": 1.0} and found.weights is None
    assert set(found.curves) == {"img", "bbox"} and found.curves["img"][0] == [
        0.01,
        0.02,
        0.05,
        0.1,
        0.15,
        0.2,
    ]


def test_points_that_are_wrong(alpha: float = 0.1) -> None:
    """Over points the pair with more of them counts more; numbers of pairs go on from batch to batch."""
    task, wrong = make(alpha=alpha), items([BACKWARDS], [1])
    wrong[TRUTH] = wrong[TRUTH] * 0 + 1  # far from where it is found
    found = task.evaluate(task.network(), [items([SAME], [3]), wrong], "cpu")
    assert found.metrics["PCK@0.1 img"] == pytest.approx(3 / 4)
    assert found.metrics["PCK@0.1 img, mean over pairs"] == pytest.approx(1 / 2)


def test_within_the_longer_side_of_the_image_or_of_the_box() -> None:
    """Twenty pixels off: within a tenth of 400 pixels, not of 100."""
    task, off = make(), items([SAME], [4])
    off[TRUTH] = off[TRUTH] + torch.tensor([20.0, 0.0])
    found = task.evaluate(task.network(), [off], "cpu")
    assert found.metrics["PCK@0.1 img"] == 1 and found.metrics["PCK@0.1 bbox"] == 0
    assert found.by_class == {"cat": 0.0}
    assert make(alpha=0.5).evaluate(task.network(), [off], "cpu").metrics["PCK@0.5 bbox"] == 1


def test_predictions_are_scored_in_pixels_of_the_original() -> None:
    """Shares of the image that the network saw, shifted and scaled, as `crop` and `pad` need it."""
    task, moved = make(), items([SAME], [4])
    moved[SHIFT] = torch.tensor([[-60.0, 7.0]], dtype=torch.float64)
    assert task.evaluate(task.network(), [moved], "cpu").metrics["PCK@0.1 img"] == 0
    moved[TRUTH] = moved[TRUTH] + moved[SHIFT]
    assert task.evaluate(task.network(), [moved], "cpu").metrics["PCK@0.1 bbox"] == 1


def test_a_convolution_learns_to_match() -> None:
    groups = ("plain", "noisy")
    task = make(groups, head="conv", channels=16)
    head, given = task.network(), items([SAME, BACKWARDS], [16, 16], groups)
    losses = made.train(task, head, given, 30, 0.01)
    assert losses[-1] < losses[0] / 2
    made.gradients(head)
    found = task.evaluate(head, [given], "cpu")
    assert found.metrics["PCK@0.1 img"] > 0.9
    assert found.weights is not None and found.weights.shape == (1, 2, 2)


def test_filled_up_points_do_not_count() -> None:
    task = make(("plain", "noisy"))
    head = task.network()

    def loss(given: dict[str, Any]) -> Tensor:
        return task.loss(head, task.batch(given, made.generators(2)))[0]

    groups = ("plain", "noisy")
    two = items([SAME, BACKWARDS], [3, 3], groups)
    filled = {**two, POINTS: torch.cat([two[POINTS], torch.full((2, 2, 4, 2), torch.nan)], 2)}
    assert loss(filled).item() == pytest.approx(loss(two).item(), rel=1e-6)
    loss(filled).backward()
    assert all(gradient.isfinite().all() for gradient in made.gradients(head).values())


def test_a_head_with_nothing_behind_the_front_gives_its_level() -> None:
    task = make(("plain", "noisy"))
    head = task.network()
    assert isinstance(head, CorrespondenceHead) and head.convolutions is None
    found, weights = head(task.maps(items([SAME], [2], ("plain", "noisy"))))
    assert found.shape == (2, 2 * CELLS, made.SIDE, made.SIDE) and weights is not None


def test_what_is_drawn() -> None:
    task = make()
    assert (
        pixels(task.sheet(task.network(), items([SAME, BACKWARDS], [5, 3]), made.Grey(), "cpu")).shape[0] > 32
    )
