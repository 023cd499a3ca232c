"""Scores by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline.heads.metrics import confusion, pck, right, scores

TRUTH = torch.tensor([[0, 0, 0, 1], [1, 1, 2, 255]], dtype=torch.uint8)
PREDICTED = torch.tensor([[0, 0, 1, 1], [1, 3, 2, 0]])
"""Class 3 is taken for 1 once, and is in no truth; what is ignored is taken for 0."""


def test_confusion_leaves_out_what_is_ignored() -> None:
    counts = confusion(PREDICTED, TRUTH, 4)
    assert counts.tolist() == [[2, 1, 0, 0], [0, 2, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0]]


def test_scores_by_hand() -> None:
    found = scores(confusion(PREDICTED, TRUTH, 4))
    assert found.iou[:3].tolist() == pytest.approx([2 / 3, 2 / 4, 1])
    assert found.acc[:3].tolist() == pytest.approx([2 / 3, 2 / 3, 1])
    assert math.isnan(found.iou[3]) and math.isnan(found.acc[3])
    assert found.miou == pytest.approx((2 / 3 + 2 / 4 + 1) / 3)
    assert found.macc == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert found.aacc == pytest.approx(5 / 7)


ID = st.integers(0, 4)


@given(st.lists(st.tuples(ID, ID), min_size=1, max_size=40))
def test_scores_are_shares(pairs: list[tuple[int, int]]) -> None:
    """And the mean is that of the classes, by whichever code."""
    predicted, truth = torch.tensor(pairs).T
    found = scores(confusion(predicted, truth, 5))
    assert found.miou == pytest.approx(float(found.iou.nanmean()))
    assert 0 <= found.miou <= found.macc <= 1
    assert 0 <= found.aacc <= 1


def test_another_id_can_be_ignored() -> None:
    assert confusion(torch.tensor([1, 1]), torch.tensor([1, 0]), 2, ignore=0).tolist() == [[0, 0], [0, 1]]


def test_images_without_a_label_add_nothing() -> None:
    nothing = confusion(torch.zeros(2, 2, dtype=torch.int64), torch.full((2, 2), 255), 3)
    assert nothing.shape == (3, 3) and not nothing.any()
    with pytest.raises(ValueError, match="no cells"):
        scores(nothing)


def test_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"predictions are \[2\], the truth \[3\]"):
        confusion(torch.zeros(2), torch.zeros(3), 2)
    with pytest.raises(ValueError, match="true ids go from 0 to 7; with 3 classes they are 0 to 2"):
        confusion(torch.tensor([0, 0]), torch.tensor([0, 7]), 3)
    with pytest.raises(ValueError, match="predicted ids go from 0 to 3"):
        confusion(torch.tensor([0, 3]), torch.tensor([0, 1]), 3)


def test_right_up_to_the_distance_and_at_it() -> None:
    truth = torch.tensor([[10.0, 10.0]]).expand(4, 2)
    predicted = torch.tensor([[10, 10], [13, 14], [16, 18], [16, 18.1]])
    found = right(predicted, truth, torch.tensor([50.0, 50, 100, 100]), 0.1)
    assert found.tolist() == [True, True, True, False]


def test_each_point_has_its_own_extent() -> None:
    """An object's box is smaller than its image, and boxes differ between pairs."""
    found = right(torch.tensor([[5.0, 0], [5, 0]]), torch.zeros(2, 2), torch.tensor([40, 60]), 0.1)
    assert found.tolist() == [False, True]


def test_pck_of_points_and_of_images() -> None:
    """Image 7 has three points, of which one is right; image 2 has one, which is right."""
    predicted = torch.tensor([[0.0, 0], [20, 0], [0, 20], [3, 0]])
    found = pck(
        predicted, torch.zeros(4, 2), torch.full((4,), 100.0), torch.tensor([7, 7, 7, 2]), (0.02, 0.1, 0.2)
    )
    assert found.alphas == (0.02, 0.1, 0.2)
    assert found.per_point == pytest.approx((1 / 4, 2 / 4, 1))
    assert found.per_image == pytest.approx((1 / 6, 2 / 3, 1))


def test_a_place_that_is_no_number_is_wrong() -> None:
    assert not right(torch.tensor([[torch.nan, 0]]), torch.zeros(1, 2), torch.ones(1), 1).any()


def test_pck_of_nothing() -> None:
    with pytest.raises(ValueError, match="no points to score"):
        pck(torch.zeros(0, 2), torch.zeros(0, 2), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
