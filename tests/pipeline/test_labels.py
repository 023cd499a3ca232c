"""What labels become, and what is said of those that are no good."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional

from pipeline.frames import Frame
from pipeline.labels import IGNORE, BadLabel, ClassIds, Keypoints, Labels, Masks
from tests.tars import encode, jpeg, png

FRAME = Frame((2, 3), (2, 3))
IDS = [[0, 1, 2], [3, 4, 255]]


def grey(ids: Any, dtype: Any = np.uint8) -> bytes:
    return encode(Image.fromarray(np.array(ids, dtype)), "PNG")


def palette(ids: Any, bits: int) -> bytes:
    image = Image.fromarray(np.array(ids, np.uint8), "P")
    image.putpalette([200, 100, 50] * 256)
    return encode(image, "PNG", bits=bits)


@pytest.mark.parametrize("data", [grey(IDS), grey(IDS, np.uint16), palette(IDS, 8)])
def test_masks_of_all_kinds(data: bytes) -> None:
    """A palette's colours say nothing; its indices are the ids."""
    found = Masks(classes=5).decode({"seg.png": data}, FRAME)
    assert found.dtype == torch.int16
    assert found.tolist() == [[0, 1, 2], [3, 4, IGNORE]]


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_palettes_of_few_colours(bits: int) -> None:
    found = Masks(classes=2).decode({"seg.png": palette([[0, 1, 0], [1, 1, 0]], bits)}, FRAME)
    assert found.tolist() == [[0, 1, 0], [1, 1, 0]]


def test_many_classes() -> None:
    """255 is a class like others where an id beyond them means none."""
    found = Masks("id.png", classes=32768, ignore=65535).decode(
        {"id.png": grey([[0, 255, 32767], [65535, 1, 1]], np.uint16)}, FRAME
    )
    assert found.tolist() == [[0, 255, 32767], [IGNORE, 1, 1]]


def test_padding_and_other_sizes() -> None:
    """2 x 3 in 6 x 6: each pixel twice as large, a row of padding above and below."""
    found = Masks(classes=5).decode({"seg.png": grey(IDS)}, Frame((2, 3), (6, 6), "pad"))
    assert found[0].tolist() == found[5].tolist() == [IGNORE] * 6
    assert found[1].tolist() == found[2].tolist() == [0, 0, 1, 1, 2, 2]


def test_a_loss_leaves_out_ignored_pixels_without_being_told() -> None:
    scores = torch.randn(1, 5, 2, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = Masks(classes=5).decode({"seg.png": grey(IDS)}, FRAME)
    functional.cross_entropy(scores, labels[None].long()).backward()
    assert scores.grad is not None
    assert (scores.grad != 0).all(1)[0].tolist() == [[True, True, True], [True, True, False]]


MASKS = Masks(classes=5)
CLASSES = ClassIds(classes=3)
OF_JSON = ClassIds("json:class", classes=3)
POINTS = Keypoints()


@pytest.mark.parametrize(
    ("label", "members", "reason", "detail"),
    [
        (MASKS, {"cls": b"1"}, "no-label", "no member 'seg.png'"),
        (MASKS, {"seg.png": b""}, "undecodable-label", "starts with b'', which is no PNG"),
        (MASKS, {"seg.png": jpeg(2, 3)}, "undecodable-label", "no PNG"),
        (MASKS, {"seg.png": png(2, 3)}, "undecodable-label", "colour type 2 with 8 bits; class ids are grey"),
        (MASKS, {"seg.png": encode(Image.new("1", (3, 2)), "PNG")}, "undecodable-label", "type 0 with 1 bits"),
        (MASKS, {"seg.png": grey(IDS)[:50]}, "undecodable-label", "50 bytes"),
        (MASKS, {"seg.png": grey(np.zeros((3, 2)))}, "label-size", r"3 x 2 pixels .*, its picture 2 x 3"),
        (MASKS, {"seg.png": grey([[0, 5, 6], [0, 7, 255]])}, "class-out-of-range", "has class 5 in 3 of its"),
        (CLASSES, {}, "no-label", "no member 'cls'"),
        (CLASSES, {"cls": b"two"}, "undecodable-label", "cls is 'two', not an integer"),
        (CLASSES, {"cls": b"\xff"}, "undecodable-label", "cannot be read"),
        (CLASSES, {"cls": b"3"}, "class-out-of-range", "cls is 3; with 3 classes, ids are 0 to 2"),
        (CLASSES, {"cls": b"-1"}, "class-out-of-range", "cls is -1"),
        (OF_JSON, {"json": b"{"}, "undecodable-label", "member 'json' cannot be read"),
        (OF_JSON, {"json": b"[" * 100000}, "undecodable-label", "cannot be read"),
        (OF_JSON, {"json": b"[1]"}, "undecodable-label", "a list, not an object"),
        (OF_JSON, {"json": b'{"class": null}'}, "no-label", "no field 'class'"),
        (OF_JSON, {"json": b'{"class": 1.5}'}, "undecodable-label", "1.5, not an integer"),
        (OF_JSON, {"json": b'{"class": true}'}, "undecodable-label", "True, not an integer"),
        (POINTS, {"json": b"{}"}, "no-label", "no field 'keypoints'"),
        (POINTS, {"json": b'{"keypoints": [1]}'}, "undecodable-label", "not a mapping"),
        (POINTS, {"json": b'{"keypoints": {"a": [1]}}'}, "undecodable-label", r"'a' is \[1\], not \[x, y\]"),
        (POINTS, {"json": b'{"keypoints": {"a": [1, NaN]}}'}, "undecodable-label", "not \\[x, y\\]"),
    ],
)  # fmt: skip
def test_bad_labels(label: Labels, members: dict[str, bytes], reason: str, detail: str) -> None:
    with pytest.raises(BadLabel, match=detail) as caught:
        label.decode(members, FRAME)
    assert caught.value.reason == reason


@settings(deadline=None)
@given(st.binary(max_size=200), st.integers(0, 120))
def test_hostile_masks_have_a_reason(noise: bytes, cut: int) -> None:
    """Whatever the bytes: a mask, or BadLabel."""
    good = grey(IDS)
    for data in (noise, good[:cut] + noise, good[:33] + noise):
        try:
            found = MASKS.decode({"seg.png": data}, FRAME)
        except BadLabel:
            continue
        assert found.shape == (2, 3)


@pytest.mark.parametrize(("classes", "ignore"), [(300, 255), (1, 0), (0, 255), (40000, 65535)])
def test_classes_that_cannot_be(classes: int, ignore: int) -> None:
    with pytest.raises(ValueError, match=r"classes of seg\.png"):
        Masks(classes=classes, ignore=ignore)


@pytest.mark.parametrize(
    ("label", "members"),
    [
        (CLASSES, {"cls": b" 2\n"}),
        (OF_JSON, {"json": b'{"class": 2}'}),
        (OF_JSON, {"json": b'{"class": "2"}'}),
    ],
)
def test_classes(label: ClassIds, members: dict[str, bytes]) -> None:
    found = label.decode(members, FRAME)
    assert found.dtype == torch.int64 and found.shape == () and found == 2
    assert label.fields == tuple(members)


def test_keypoints() -> None:
    """In the image's pixels, and back; what is not seen is left out."""
    frame = Frame((40, 60), (20, 20))
    data = json.dumps({"keypoints": {"nose": [30, 20], "tail": None, "ear": [0.5, 0.5]}}).encode()
    found = Keypoints().decode({"json": data}, frame)
    assert found.names == ("nose", "ear")
    assert found.xy.dtype == torch.float64
    assert found.xy.tolist() == [[10, 10], pytest.approx([0.5 / 3, 0.25])]
    assert frame.to_picture(found.xy).tolist() == [[30, 20], pytest.approx([0.5, 0.5])]
    assert Keypoints().decode({"json": b'{"keypoints": {}}'}, frame).xy.shape == (0, 2)


def test_a_mask_is_taken_as_it_lies_there() -> None:
    """An orientation in its metadata would turn it away from a picture that is upright already."""
    exif = Image.Exif()
    exif[0x0112] = 3
    buffer = io.BytesIO()
    Image.fromarray(np.array(IDS, np.uint8)).save(buffer, "PNG", exif=exif)
    found = Masks(classes=5).decode({"seg.png": buffer.getvalue()}, FRAME)
    assert found.tolist() == [[0, 1, 2], [3, 4, IGNORE]]


def test_a_point_that_no_float_holds() -> None:
    data = b'{"keypoints": {"a": [1, 1' + b"0" * 400 + b"]}}"
    with pytest.raises(BadLabel, match=r"'a' is .*, not \[x, y\]"):
        Keypoints().decode({"json": data}, Frame((4, 4), (8, 8)))
