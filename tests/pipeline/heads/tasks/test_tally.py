from __future__ import annotations

import pytest
import torch

from pipeline.heads.tasks.tally import Tally
from pipeline.labels import IGNORE

CLASSES = ["ground", "red", "blue"]


def test_counts_over_batches() -> None:
    """The scores are of all pixels together, not means over batches; what has no class does not count."""
    tally = Tally(CLASSES)
    tally.add(torch.tensor([[0, 0, 1]]), torch.tensor([[0, 0, 1]]), None)
    tally.add(torch.tensor([[1, 1]]), torch.tensor([[0, IGNORE]]), None)
    found = tally.segmentation()
    assert found.confusion is not None and found.confusion.tolist() == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert list(found.metrics) == ["mIoU", "aAcc", "mAcc"]
    assert found.metrics["aAcc"] == pytest.approx(3 / 4)
    assert found.metrics["mIoU"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert found.metrics["mAcc"] == pytest.approx((2 / 3 + 1) / 2)
    assert found.by_class == {"ground": pytest.approx(2 / 3), "red": pytest.approx(1 / 2)}
    assert found.weights is None


def test_classes_of_images() -> None:
    tally = Tally(CLASSES)
    tally.add(torch.tensor([0, 1, 1, 2]), torch.tensor([0, 0, 1, 2]), torch.full((4, 1, 2, 2), 0.5))
    found = tally.classification()
    assert found.metrics == {
        "accuracy": pytest.approx(3 / 4),
        "mean class accuracy": pytest.approx((1 / 2 + 1 + 1) / 3),
    }
    assert found.by_class == {"ground": 0.5, "red": 1.0, "blue": 1.0}
    assert found.weights is not None and found.weights.shape == (1, 2, 2)


def test_labels_as_stored_count() -> None:
    """Masks are int16, predictions int64."""
    tally = Tally(CLASSES)
    tally.add(torch.tensor([[2]]), torch.tensor([[2]], dtype=torch.int16), None)
    assert tally.segmentation().metrics["mIoU"] == 1


def test_nothing_that_has_a_class() -> None:
    tally = Tally(CLASSES)
    tally.add(torch.tensor([[1]]), torch.tensor([[IGNORE]]), None)
    with pytest.raises(ValueError, match="the confusion has no cells"):
        tally.segmentation()
