"""What is put into a picture is seen in it."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from pipeline.embedded_figures import pictures
from pipeline.embedded_figures.edges import Followed
from pipeline.scenes.cutouts import CLASSES
from tests.evaluation_scenes import scene

COLOURS = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0), (250, 0, 250)]


def filled(colour: tuple[int, int, int]) -> np.ndarray:
    return np.full((64, 64, 3), colour, np.uint8)


def places(image: Image.Image, colour: tuple[int, int, int]) -> tuple[float, float]:
    """Mean row and column of a colour."""
    rows, columns = np.nonzero((np.asarray(image) == colour).all(2))
    assert len(rows) >= 64 * 64
    return float(rows.mean()), float(columns.mean())


def test_samples_lie_in_rows_of_four() -> None:
    prompts = [f"a photo of thing {number}" for number in range(5)]
    image = pictures.samples(prompts, np.stack([filled(colour) for colour in COLOURS]))
    found = [places(image, colour) for colour in COLOURS]
    assert len({round(row) for row, _ in found[:4]}) == 1 and found[4][0] > found[0][0]
    columns = [column for _, column in found[:4]]
    assert columns == sorted(columns) and found[4][1] == columns[0]


def test_prompts_name_every_class() -> None:
    """A class that is never asked for is never judged."""
    said = " ".join(pictures.PROMPTS).replace(",", "").split()
    assert len(pictures.PROMPTS) == 16 and set(CLASSES[1:]) <= set(said)


def test_reconstructions_lie_below_their_scenes() -> None:
    one = scene(0)
    object.__setattr__(one, "pixels", filled(COLOURS[0]))
    after = torch.from_numpy(filled(COLOURS[1])).permute(2, 0, 1)[None]
    image = pictures.reconstructions([one], after)
    above, below = places(image, COLOURS[0]), places(image, COLOURS[1])
    assert above[0] < below[0] and above[1] == below[1]


def test_control_shows_three_rows() -> None:
    wanted = np.ones((2, 64, 64), np.bool_)
    ours, without = (np.stack([filled(colour)] * 2) for colour in COLOURS[:2])
    image = pictures.control(Followed([scene(0), scene(1)], wanted, ours, without), most=1)
    assert places(image, COLOURS[0])[0] < places(image, COLOURS[1])[0]
