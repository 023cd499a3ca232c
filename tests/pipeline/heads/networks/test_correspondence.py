"""The nearest neighbour is where it should be, and between cells where it lies between cells."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from pipeline.heads.networks import correspondence
from pipeline.heads.networks.alignment import resized
from pipeline.heads.networks.correspondence import ConvHead, matching_loss, nearest, similarity
from pipeline.heads.networks.points import centres, sample_points


def random_map(channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(channels, height, width, generator=torch.Generator().manual_seed(seed))


def position_map(height: int, width: int, shift: tuple[float, float] = (0, 0)) -> Tensor:
    """Descriptors that turn slowly with x and y, [4, h, w]; the picture is moved by `shift` = (x, y), as shares."""
    x, y = (centres((height, width)) - torch.tensor(shift)).T.view(2, height, width)
    return torch.stack([x.cos(), x.sin(), y.cos(), y.sin()])


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 8), st.integers(2, 8), st.integers(1, 3), st.integers(0, 99))
def test_an_image_matches_itself(height: int, width: int, factor: int, seed: int) -> None:
    """At every place that can be an answer, also between cells. Beyond the outermost centres all is the same."""
    features, points = random_map(16, height, width, seed), centres((factor * height, factor * width))
    edge = 0.5 / torch.tensor([width, height])
    found = nearest(features, points, features, factor).clamp(edge, 1 - edge)
    torch.testing.assert_close(found, points.clamp(edge, 1 - edge))


def test_similarity_is_the_cosine_with_the_enlarged_map(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(correspondence, "_CHANNELS", 5)  # which does not divide the channels
    source, target, points = random_map(12, 4, 5), random_map(12, 3, 6, 1), torch.rand(7, 2)
    found = similarity(source, points, target, 3)
    wanted = sample_points(source[None], points[None])[0]
    expected = functional.cosine_similarity(wanted[..., None, None], resized(target, (9, 18))[None], dim=1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_answers_are_finer_than_a_cell() -> None:
    """A shift by a quarter of a cell is found; enlarged cosines would give a cell's centre, or a place beside it."""
    shift = (0.25 / 8, -0.5 / 8)
    source, target = position_map(8, 8), position_map(8, 8, shift)
    points = centres((8, 8)).view(8, 8, 2)[2:6, 2:6].reshape(-1, 2)
    found = nearest(source, points, target, 8)
    errors = (found - points - torch.tensor(shift)).abs() * 8
    assert errors.max() < 0.13


def test_scale_of_descriptors_does_not_matter() -> None:
    """A cell with a large norm must not attract all points."""
    source, points = random_map(16, 4, 4), centres((4, 4))
    target = source * torch.logspace(-2, 2, 16).view(4, 4)
    assert torch.equal(nearest(source, points, target, 1), points)


def test_images_of_other_resolutions() -> None:
    points = torch.tensor([[0.3, 0.7], [0.6, 0.4]])
    found = nearest(position_map(6, 12), points, position_map(16, 8), 4)
    assert (found - points).abs().max() < 0.04


def test_empty_places_are_similar_to_nothing() -> None:
    """Padding may be all zeros: no NaN, which would be the greatest of all."""
    target = random_map(8, 4, 4)
    target[:, :2] = 0
    found = similarity(random_map(8, 4, 4, 1), torch.rand(3, 2), target, 2)
    assert found.isfinite().all() and found.abs().max() < 1.0001
    assert not found[:, :3].any()


def test_no_points() -> None:
    assert nearest(random_map(3, 4, 4), torch.zeros(0, 2), random_map(3, 4, 4)).shape == (0, 2)


@pytest.mark.parametrize("attention", [0, 3])
def test_each_part_has_a_convolution_of_its_own(attention: int) -> None:
    head = ConvHead(2, 4, attention, 5)
    parts, beside = torch.randn(3, 2, 4, 6, 6), torch.randn(3, attention, 6, 6)
    found = head(parts, beside)
    assert found.shape == (3, 15 if attention else 10, 6, 6)
    changed = parts.clone()
    changed[:, 1] += 1
    other = head(changed, beside)
    assert torch.equal(other[:, :5], found[:, :5]) and torch.equal(other[:, 10:], found[:, 10:])
    assert not torch.allclose(other[:, 5:10], found[:, 5:10])


def test_loss_at_the_centres_of_cells_is_cross_entropy() -> None:
    source, target = random_map(8, 3, 4), random_map(8, 5, 2, 1)
    here, there = torch.tensor([7, 2]), torch.tensor([3, 9])
    points, truth = centres((3, 4))[here], centres((5, 2))[there]
    expected = (
        functional.cross_entropy(similarity(source, points, target).flatten(1) / 0.1, there)
        + functional.cross_entropy(similarity(target, truth, source).flatten(1) / 0.1, here)
    ) / 2
    torch.testing.assert_close(matching_loss(source, target, points, truth, 0.1), expected)


def test_training_on_points_finds_other_points() -> None:
    """Of 12 channels two tell where a cell is, in both images; the others are noise of one image each."""
    signal = 2 * random_map(2, 6, 6, 7)

    def picture(seed: int) -> Tensor:
        return torch.cat([signal, 3 * random_map(10, 6, 6, seed)])[None, None]

    head, none = ConvHead(1, 12, 0, 8), torch.zeros(1, 0, 6, 6)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.01)

    def share(seed: int) -> float:
        source, target = (head(picture(one), none)[0] for one in (seed, seed + 1))
        return float((nearest(source, centres((6, 6)), target, 1) == centres((6, 6))).all(1).float().mean())

    before = share(1000)
    for step in range(100):
        source, target = (head(picture(one), none)[0] for one in (2 * step, 2 * step + 1))
        optimizer.zero_grad()
        matching_loss(source, target, centres((6, 6))[::2], centres((6, 6))[::2], 0.1).backward()
        optimizer.step()
    assert before < 0.3
    assert share(1000) > 0.8
