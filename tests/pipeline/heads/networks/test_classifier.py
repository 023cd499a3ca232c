"""One linear layer on pooled features."""

from __future__ import annotations

import torch

from pipeline.heads.networks.classifier import Classifier


def test_is_linear_in_all_levels() -> None:
    classifier, levels = Classifier([3, 2], 4), [torch.randn(5, 3, 1, 1), torch.randn(5, 2, 1, 1)]
    vectors = torch.cat(levels, 1)[..., 0, 0]
    expected = vectors @ classifier.linear.weight.T + classifier.linear.bias
    torch.testing.assert_close(classifier(levels), expected)


def test_maps_are_pooled() -> None:
    classifier, level = Classifier([3], 4), torch.randn(5, 3, 6, 7)
    torch.testing.assert_close(classifier([level]), classifier([level.mean((2, 3), keepdim=True)]))
