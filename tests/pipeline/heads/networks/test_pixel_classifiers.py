"""Members learn alone and vote together, and the shortcut of prediction is none in what it gives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.heads.networks import pixel_classifiers
from pipeline.heads.networks.alignment import resized
from pipeline.heads.networks.pixel_classifiers import PixelClassifiers, ensemble_loss
from pipeline.heads.networks.points import sample_points


def member(ensemble: PixelClassifiers, number: int, vectors: Tensor) -> Tensor:
    """Logits of one member by plain layers."""
    for place, (weight, bias) in enumerate(zip(ensemble.weights, ensemble.biases, strict=True)):
        vectors = (vectors.relu() if place else vectors) @ weight[number] + bias[number]
    return vectors


def test_members_are_plain_networks() -> None:
    """And differ from the beginning: equal ones would have nothing to vote about."""
    ensemble, vectors = PixelClassifiers(6, 4, members=3), torch.randn(3, 5, 6)
    for bias in ensemble.biases:
        bias.data.normal_()
    found = ensemble(vectors)
    for number in range(3):
        torch.testing.assert_close(found[number], member(ensemble, number, vectors[number]))
    assert not torch.allclose(ensemble.weights[0][0], ensemble.weights[0][1])


@pytest.mark.parametrize(("classes", "hidden"), [(29, (128, 32)), (30, (256, 128))])
def test_layers_are_as_wide_as_the_references(classes: int, hidden: tuple[int, int]) -> None:
    shapes = [tuple(weight.shape) for weight in PixelClassifiers(7, classes, members=2).weights]
    assert shapes == [(2, 7, hidden[0]), (2, *hidden), (2, hidden[1], classes)]


def test_members_are_independent() -> None:
    """What one member sees, or does not see, changes no other's gradient."""
    ensemble = PixelClassifiers(6, 4, members=3)
    vectors, labels = torch.randn(3, 5, 6), torch.randint(4, (3, 5))
    gradients = []
    for change in (None, "vectors", "labels"):
        if change == "vectors":
            vectors[1] += 1
        elif change == "labels":
            labels[1] = 255
        ensemble.zero_grad()
        ensemble_loss(ensemble(vectors), labels).backward()
        gradients.append(
            [parameter.grad.clone() for parameter in ensemble.parameters() if parameter.grad is not None]
        )
    for before, moved, without in zip(*gradients, strict=True):
        assert not torch.equal(before[1], moved[1])
        assert not without[1].any()
        for other in (0, 2):
            assert torch.equal(before[other], moved[other]) and torch.equal(before[other], without[other])


def test_loss_of_a_member_is_that_of_its_own_training() -> None:
    logits, labels = torch.randn(2, 6, 4), torch.randint(4, (2, 6))
    labels[0, :4] = 255
    expected = torch.nn.functional.cross_entropy(logits[0, 4:], labels[0, 4:])
    expected = expected + torch.nn.functional.cross_entropy(logits[1], labels[1])
    torch.testing.assert_close(ensemble_loss(logits, labels), expected)


@pytest.mark.parametrize("chunk", [7, 2**14])
def test_prediction_is_that_of_every_pixels_vector(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first layer on coarse cells is the plain way: enlarge all channels, then classify each pixel."""
    monkeypatch.setattr(pixel_classifiers, "_CHUNK", chunk)
    ensemble, features = PixelClassifiers(6, 5, members=3), torch.randn(2, 6, 4, 3)
    for bias in ensemble.biases:
        bias.data.normal_(std=0.2)
    found = ensemble.predict(features, (9, 10))
    vectors = resized(features, (9, 10)).permute(0, 2, 3, 1).reshape(-1, 6)
    logits = ensemble(vectors.expand(3, -1, -1))
    votes = torch.nn.functional.one_hot(logits.argmax(-1), 5).sum(0).view(2, 9, 10, 5)
    assert (found.shape, found.dtype) == ((2, 9, 10), torch.int64)
    assert len(found.unique()) > 2
    assert torch.equal(votes.gather(-1, found[..., None])[..., 0], votes.max(-1).values)
    clear = (votes == votes.max(-1, keepdim=True).values).sum(-1) == 1
    assert clear.float().mean() > 0.5
    assert torch.equal(found[clear], votes.argmax(-1)[clear])


def voted(*logits: list[float]) -> int:
    """Of one pixel, a list a member."""
    return int(pixel_classifiers._vote(torch.tensor(logits, dtype=torch.float32)[:, None]))


def test_votes_count_before_probabilities() -> None:
    """Two members that lean to class 0 outvote one that is sure of class 1."""
    assert voted([0.1, 0, 0], [0.1, 0, 0], [0, 50, 0]) == 0


def test_equal_votes_are_decided_by_probability() -> None:
    """Not by the number of the class; and a third class, probable to all but first to none, gets nothing."""
    assert voted([2, 0, 0], [0, 3, 0]) == 1
    assert voted([3, 0, 0], [0, 2, 0]) == 0
    assert voted([5, 0, 4.9], [0, 5.1, 5]) == 1


def test_learns_what_pixels_are() -> None:
    """Two classes by the sign of a product of channels, which no linear layer tells."""
    ensemble = PixelClassifiers(2, 2, members=3, hidden=(16, 8))
    optimizer = torch.optim.Adam(ensemble.parameters(), lr=0.01)
    for _ in range(150):
        vectors = torch.randn(3, 64, 2)
        optimizer.zero_grad()
        ensemble_loss(ensemble(vectors), (vectors.prod(-1) > 0).long()).backward()
        optimizer.step()
    features = torch.tensor([[-1.0, 1.0], [1.0, -1.0]])[None, :, None].expand(1, 2, 2, 2).clone()
    features[0, 1, 1] = torch.tensor([-1.0, 1.0])
    assert ensemble.predict(features, (2, 2))[0].tolist() == [[0, 0], [1, 1]]


def test_pixels_of_a_map_are_classified_as_their_vectors_are() -> None:
    """The first layer is applied to cells, before interpolation; each member must get its own pixels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classifiers = PixelClassifiers(20, 5, members=3)
        features, points = torch.randn(2, 20, 6, 7), torch.rand(2, 3, 11, 2)
    vectors = sample_points(features, points.flatten(1, 2)).unflatten(1, (3, 11))
    expected = classifiers(vectors.transpose(0, 1).flatten(1, 2))
    torch.testing.assert_close(classifiers.at(features, points), expected, rtol=1e-4, atol=1e-5)
