"""The probe finds what is there to be found, and nothing where there is nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline import linear_probe
from pipeline.linear_probe import Training, confusion

CLASSES = 4
SHORT = Training(side=8, steps=150, batch=256, learning_rate=0.05)


def planted(images: int, seed: int) -> tuple[Tensor, Tensor]:
    """Features [n, 6, 8, 8] with each cell's class hidden in a rotation of channels of very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (images, 8, 8), generator=generator)
    mixing = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(9)))[0]
    hidden = torch.nn.functional.one_hot(labels, 6).float() @ mixing
    noise = 0.02 * torch.randn(hidden.shape, generator=generator)
    scale = torch.tensor([1e-2, 1, 1e2, 1, 1, 1])
    return ((hidden + noise) * scale + 50).permute(0, 3, 1, 2), labels


def scored(features: Tensor, labels: Tensor, seed: int = 0, training: Training = SHORT) -> float:
    """On data that the probe did not see."""
    probe = linear_probe.train(features, labels, CLASSES, seed, training)
    test, truth = planted(8, seed=5)
    return linear_probe.mean_iou(linear_probe.confusion(probe.predict(test), truth, CLASSES))


def test_finds_what_a_line_separates() -> None:
    """Also where channels have other offsets and sizes: guards against a standardisation that is not undone."""
    assert scored(*planted(16, seed=1)) > 0.98


def test_finds_nothing_in_shuffled_labels() -> None:
    """Guards against a probe that sees the test's labels: guessing has an IoU near 1/7."""
    features, labels = planted(24, seed=1)
    labels = labels.flatten()[torch.randperm(labels.numel(), generator=torch.Generator().manual_seed(2))]
    labels = labels.view(24, 8, 8)
    predicted = linear_probe.train(features[:16], labels[:16], CLASSES, 0, SHORT).predict(features[16:])
    assert linear_probe.mean_iou(linear_probe.confusion(predicted, labels[16:], CLASSES)) < 0.2


def test_the_seed_decides() -> None:
    features, labels = planted(4, seed=1)
    first, again, other = (linear_probe.train(features, labels, CLASSES, seed, SHORT) for seed in (0, 0, 1))
    assert torch.equal(first.weight, again.weight) and torch.equal(first.bias, again.bias)
    assert not torch.equal(first.weight, other.weight)


def test_leaves_torchs_own_random_numbers_alone() -> None:
    """A probe between two draws must not change the second."""
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    linear_probe.train(*planted(2, seed=1), CLASSES, 3, Training(side=8, steps=2, batch=16))
    assert torch.equal(torch.rand(1), expected)


def test_predicts_at_its_own_resolution() -> None:
    """Features of 8 x 8 are enlarged smoothly: the border between two halves stays in the middle."""
    labels = torch.zeros(2, 64, 64, dtype=torch.uint8)
    labels[:, :, 32:] = 1
    features = torch.zeros(2, 1, 8, 8)
    features[..., 4:] = 1
    training = Training(side=32, steps=100, batch=256, learning_rate=0.05)
    predicted = linear_probe.train(features, labels, 2, 0, training).predict(features)
    assert predicted.shape == (2, 32, 32)
    assert torch.equal(predicted, linear_probe.reduced(labels, 32))


def test_rare_classes_count() -> None:
    """One cell in 64 is of a class that features show weakly: unweighted, it would be given up."""
    generator = torch.Generator().manual_seed(0)
    labels = (torch.rand(32, 8, 8, generator=generator) < 1 / 16).long()
    features = (labels + 0.5 * torch.randn(labels.shape, generator=generator))[:, None]

    def hits(rare: int) -> int:
        how = Training(side=8, steps=150, batch=256, learning_rate=0.05, rare=rare)
        probe = linear_probe.train(features, labels, 2, 0, how)
        return int(linear_probe.confusion(probe.predict(features), labels, 2)[1, 1])

    assert hits(rare=1) > 1.2 * hits(rare=10**9)


def test_labels_are_those_of_the_pixels_in_the_middle() -> None:
    labels = torch.arange(8)[None, None].expand(1, 8, 8)
    assert linear_probe.reduced(labels, 2)[0, 0].tolist() == [2, 6]


def test_mean_iou_by_hand() -> None:
    """Class 0: 2 of 3 in the union; class 1: 1 of 2; class 2 is in no truth, and its wrong guess counts elsewhere."""
    truth, predicted = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 0, 2, 1])
    counts = linear_probe.confusion(predicted, truth, 3)
    assert counts.tolist() == [[2, 0, 1], [0, 1, 0], [0, 0, 0]]
    assert linear_probe.mean_iou(counts) == pytest.approx((2 / 3 + 1) / 2)


def test_what_does_not_fit() -> None:
    features, labels = planted(2, seed=1)
    with pytest.raises(ValueError, match=r"features \[2, 6, 8, 8\] with labels \[1, 8, 8\]"):
        linear_probe.train(features, labels[:1], CLASSES, 0, SHORT)
    with pytest.raises(ValueError, match="labels go from 0 to 3; with 3 classes they are 0 to 2"):
        linear_probe.train(features, labels, 3, 0, SHORT)
    with pytest.raises(ValueError, match="has no cells"):
        linear_probe.mean_iou(torch.zeros(3, 3, dtype=torch.int64))


def test_many_classes_in_few_bits() -> None:
    """Guards against labels as they come from a PNG, whose product with the number of classes wraps around."""
    labels = torch.arange(20, dtype=torch.uint8).reshape(1, 4, 5)
    assert torch.equal(confusion(labels, labels, 20), torch.eye(20, dtype=torch.int64))
