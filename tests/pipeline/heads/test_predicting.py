"""What a head says of pictures at hand is what it says of the same pictures' stored features, at their own size."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline import FeatureStore
from pipeline.bad import BadSample
from pipeline.extractor import FeatureExtractor
from pipeline.frames import Frame
from pipeline.geometry import placement
from pipeline.heads.predicting import Predicted, grid, locate, mask, mask_file, predict, said, unseen
from pipeline.heads.trained import Trained, extractor, load_head
from pipeline.labels import IGNORE, Masks
from tests import labelled as shapes
from tests.trained_heads import head

SHARD = "test-0.tar"
NUMBERS = list(shapes.SHARDS[SHARD])
FITS = st.sampled_from(["stretch", "crop", "pad"])


@functools.cache
def opened(labelled: Path, task: str) -> tuple[Trained, FeatureExtractor]:
    """A head, and what computes its features."""
    trained = load_head(head(labelled, task))
    return trained, extractor(trained)


def pictures(numbers: Sequence[int]) -> list[bytes]:
    return [shapes.members(number)["png"] for number in numbers]


def stored(labelled: Path, trained: Trained, numbers: Sequence[int]) -> dict[str, Tensor]:
    """The features of some pictures, as the store has them."""
    store = FeatureStore(str(labelled / "store"))
    rows = {line["key"]: line["row"] for line in store.index.to_pylist()}
    wanted = [rows[shapes.key_of(number)] for number in numbers]
    if trained.spec.task.type != "classification":
        return {name: torch.from_numpy(maps) for name, maps in store.read(wanted, trained.taps).items()}
    table = store.pooled(trained.taps)
    places = [table["row"].to_pylist().index(row) for row in wanted]
    pooled = {name: torch.tensor(table[name].take(places).to_pylist()) for name in trained.taps}
    return {name: vectors[:, :, None, None] for name, vectors in pooled.items()}


@pytest.mark.parametrize("task", list(shapes.TASKS))
def test_equals_what_is_said_of_stored_rows(labelled: Path, task: str) -> None:
    """Byte for byte on one thread, as the features are: given the samples' ids, noise is the same."""
    trained, extract = opened(labelled, task)
    numbers = [20, 16, 23]
    ids = [(SHARD, shapes.key_of(number)) for number in numbers]
    found = predict(trained, extract, pictures(numbers), ids=ids)
    expected = said(trained, stored(labelled, trained, numbers), (64, 64))
    assert torch.equal(torch.stack([one.said for one in found]), expected)
    assert [one.frame.picture for one in found] == [shapes.size_of(number) for number in numbers]


def test_masks_of_pictures_that_were_not_stored(labelled: Path) -> None:
    """Noise follows the picture then; the head still finds the squares, upright and at their own size."""
    trained, extract = opened(labelled, "label-scarce")
    hits, squares = [], []
    for number, one in zip(NUMBERS, predict(trained, extract, pictures(NUMBERS)), strict=True):
        truth = (
            Masks(classes=3)
            .decode(shapes.members(number), Frame(shapes.size_of(number), shapes.size_of(number)))
            .numpy()
        )
        known = truth != IGNORE
        hits.append((mask(one, 255) == truth)[known].mean())
        squares.append((truth[known] > 0).mean())
    assert np.mean(hits) > 1 - np.mean(squares) + 0.1  # more than all ground


def test_classes(labelled: Path) -> None:
    trained, extract = opened(labelled, "classification")
    shares = torch.stack([one.said for one in predict(trained, extract, pictures(NUMBERS))])
    assert torch.allclose(shares.sum(1), torch.ones(len(NUMBERS)))
    truth = [int(shapes.members(number)["cls"]) for number in NUMBERS]
    assert (shares.argmax(1) == torch.tensor(truth)).double().mean() > 0.7


def test_a_point_is_found_in_its_own_picture(labelled: Path) -> None:
    """Pictures are not square, so that x and y cannot be exchanged unnoticed, here or on the way back."""
    trained, extract = opened(labelled, "correspondence")
    for number in (NUMBERS[0], NUMBERS[2]):
        (one,) = predict(trained, extract, pictures([number]))
        points = torch.tensor(list(shapes.points_of(number).values()), dtype=torch.float64)
        far = (locate(one, one, points) - points).abs().max()
        assert far <= 1.5  # places are 2 pixels of 64


def test_points_come_back_to_the_target() -> None:
    """Of cells that know each other, in an image that is not square: pictures lie in it at different places."""
    cells = torch.eye(32).view(32, 4, 8)
    image = (32, 64)
    source = Predicted(np.zeros((100, 100, 3), np.uint8), Frame((100, 100), image, "pad"), cells)
    target = Predicted(np.zeros((64, 256, 3), np.uint8), Frame((64, 256), image, "pad"), cells)
    in_image = torch.tensor([[20.0, 12], [44, 20]], dtype=torch.float64)  # centres of cells
    found = locate(source, target, source.frame.to_picture(in_image))
    assert (
        found - torch.tensor([[80.0, 16], [176, 48]])
    ).abs().max() <= 4.01  # a pixel of the image is 4 there


def test_a_picture_that_cannot_be_read(labelled: Path) -> None:
    trained, extract = opened(labelled, "classification")
    with pytest.raises(BadSample, match="undecodable-image"):
        predict(trained, extract, [b"no picture"])


def made(frame: Frame, ids: Any) -> Predicted:
    """A prediction over an image."""
    return Predicted(np.zeros((*frame.picture, 3), np.uint8), frame, torch.as_tensor(ids))


@settings(max_examples=60, deadline=None)
@given(
    picture=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    more=st.tuples(st.integers(0, 20), st.integers(0, 20)),
    fit=FITS,
)
def test_masks_come_back_to_the_picture(
    picture: tuple[int, int], more: tuple[int, int], fit: Literal["stretch", "crop", "pad"]
) -> None:
    """What labels go through on their way into a finer image, undone: each pixel that was kept has its own id."""
    side = max(picture)
    frame = Frame(picture, (side + more[0], side + more[1]), fit)
    labels = np.arange(picture[0] * picture[1]).reshape(picture)
    found = mask(made(frame, frame.resampled(labels, -5).astype(np.int64)), -1)
    seen = found != -1
    assert found.shape == picture and (found == labels)[seen].all()
    top, left, bottom, right = placement(picture, frame.image, fit).kept
    surely, maybe = (
        np.outer(within(top, bottom, picture[0], edge), within(left, right, picture[1], edge))
        for edge in (1e-9, -1e-9)
    )
    assert (seen >= surely).all() and (seen <= maybe).all()


def within(first: float, last: float, count: int, edge: float) -> Any:
    """Of so many pixels, those with their centre between two places, by at least `edge`."""
    at = np.arange(count) + 0.5
    return (at > first + edge) & (at < last - edge)


def test_what_a_crop_cut_off_has_no_class() -> None:
    frame = Frame((4, 10), (8, 8), "crop")  # columns 3 to 7 are kept
    found = mask(made(frame, np.ones((8, 8), np.int64)), 255)
    assert (found == np.where((np.arange(10) >= 3) & (np.arange(10) < 7), 1, 255)).all()


@pytest.mark.parametrize(("most", "outside"), [(255, 255), (300, 65535)])
def test_mask_files_are_labels(most: int, outside: int) -> None:
    """So that predictions can be compared, or trained on, with what reads labels."""
    ids = np.array([[0, 1, 2], [most, outside, 0]])
    data = mask_file(ids, max(most, outside))
    classes = min(most, 254) + 1 if outside == 255 else most + 1
    found = Masks(classes=classes, ignore=outside).decode({"seg.png": data}, Frame((2, 3), (2, 3)))
    assert (found.numpy() == np.where(ids == outside, IGNORE, ids)).all()


@settings(max_examples=40, deadline=None)
@given(picture=st.tuples(st.integers(1, 90), st.integers(1, 90)), fit=FITS, count=st.integers(1, 4))
def test_a_grid_is_where_the_network_sees(
    picture: tuple[int, int], fit: Literal["stretch", "crop", "pad"], count: int
) -> None:
    frame = Frame(picture, (64, 32), fit)
    points = grid(frame, count)
    assert points.shape == (count**2, 2) and not unseen(frame, points).any()
    assert len(points.unique(dim=0)) == count**2


def test_points_that_the_network_does_not_see() -> None:
    """A crop keeps columns 40 to 140; the picture's own edges count as seen."""
    points = torch.tensor([[39.0, 5], [41, 5], [139, 5], [141, 5], [90, 0], [90, 100], [90, 101], [-1, 5]])
    frame = Frame((100, 180), (64, 64), "crop")
    assert unseen(frame, points).tolist() == [True, False, False, True, False, False, True, True]
    assert unseen(Frame((100, 180), (64, 64)), points).tolist() == [False] * 6 + [True] * 2


def test_one_group_alone_is_computed(labelled: Path) -> None:
    """A head that reads one group must not pay for all that its store has."""
    trained, _ = opened(labelled, "classification")
    alone = Trained(
        trained.url,
        trained.manifest.model_copy(update={"shapes": {shapes.NAMES[0]: [96, 1, 1]}}),
        trained.spec,
        trained.network,
        "cpu",
    )
    extract = extractor(alone)
    assert [group.name for group in extract.spec.groups] == ["plain"]
    assert list(extract(pictures([20]))) == [shapes.NAMES[0]]
