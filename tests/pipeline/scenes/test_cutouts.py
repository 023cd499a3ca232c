from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.scenes.cutouts import CLASSES, find_cutouts, held_out_names
from tests.stamps import DRAWN, HELD_OUT, SEEN, make_stamps


@pytest.fixture(scope="module")
def stamps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_stamps(tmp_path_factory.mktemp("stamps"))


def test_only_photographs_of_a_class_are_taken(stamps: Path) -> None:
    """Drawings, mirrored copies, symbols, opaque and tiny pictures are not."""
    assert [cutout.name for cutout in find_cutouts(stamps)] == sorted((*SEEN, *HELD_OUT))


def test_drawings_are_apart(stamps: Path) -> None:
    assert [cutout.name for cutout in find_cutouts(stamps, drawn=True)] == sorted(DRAWN)


def test_held_out_is_what_the_list_says(stamps: Path) -> None:
    held_out = {cutout.name for cutout in find_cutouts(stamps) if cutout.held_out}
    assert held_out == set(HELD_OUT)
    assert len(held_out_names()) == 43


def test_class_caption_and_colour(stamps: Path) -> None:
    by_name = {cutout.name: cutout for cutout in find_cutouts(stamps)}
    parrot = by_name["animals/birds/parrot.png"]
    assert CLASSES[parrot.class_id] == "bird"
    assert parrot.caption == "parrot"  # first clause of the first line, without the article
    assert parrot.colour in ("brown", "green", "grey", "beige", "red")  # by its gradient


def test_cut_to_its_box(stamps: Path) -> None:
    for cutout in find_cutouts(stamps):
        opaque = cutout.rgba[..., 3] > 20
        assert opaque.any(0).all()
        assert opaque.any(1).all()
        assert max(opaque.shape) <= 192


def test_no_stamps(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="tuxpaint-stamps-default"):
        find_cutouts(tmp_path)


def test_what_lies_under_transparency_is_not_seen(tmp_path: Path) -> None:
    """A red disc on transparent green: neither its colour's word nor its rim, made smaller, has any green."""
    y, x = np.mgrid[0:400, 0:400] - 199.5
    inside = np.hypot(x, y) < 190
    rgba = np.where(inside[..., None], (190, 50, 45, 255), (0, 255, 0, 0)).astype(np.uint8)
    path = tmp_path / "food/fruit/disc.png"
    path.parent.mkdir(parents=True)
    Image.fromarray(rgba).save(path)
    [cutout] = find_cutouts(tmp_path)
    assert cutout.colour == "red"
    assert cutout.rgba.shape[:2] == (192, 192)
    assert cutout.rgba[cutout.rgba[..., 3] > 8][:, 1].max() < 70
