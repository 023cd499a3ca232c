from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.scenes.cutouts import CLASSES, find_cutouts, held_out_names
from tests.stamps import HELD_OUT, SEEN, make_stamps


@pytest.fixture(scope="module")
def stamps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_stamps(tmp_path_factory.mktemp("stamps"))


def test_only_photographs_of_a_class_are_taken(stamps: Path) -> None:
    """Cartoons, mirrored copies, symbols, opaque and tiny pictures are not."""
    assert [cutout.name for cutout in find_cutouts(stamps)] == sorted((*SEEN, *HELD_OUT))


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


def test_colour_is_of_the_opaque_part(stamps: Path) -> None:
    cutout = find_cutouts(stamps)[0]
    assert np.all(cutout.rgba[0, 0, 3] == 0)  # a corner of an ellipse's box
