from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from webdataset import TarWriter

from pipeline.gate.sampling import captioned, draw
from pipeline.shards import list_shards
from schemas.gate import GateSpec


def encoded(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 40, 3), np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, samples: list[dict[str, Any]]) -> None:
    with TarWriter(str(path), encoder=False) as writer:
        for number, sample in enumerate(samples):
            writer.write({"__key__": f"s{number}", **sample})


def spec(path: Path, **fields: Any) -> GateSpec:
    given = {
        "version": 1,
        "out": "o",
        "input": {"shards": f"{path}/*.tar"},
        "image_size": [32, 32],
        "images": 4,
    }
    return GateSpec.model_validate(given | fields)


CAPTION = [{"name": "caption", "prompt": "{caption}"}]


def test_the_seed_draws(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", [{"png": encoded(n), "txt": f"n{n}".encode()} for n in range(12)])
    one, again, other = (
        draw(made, list_shards(made.input))
        for made in (spec(tmp_path), spec(tmp_path), spec(tmp_path, seed=1))
    )
    assert len(one) == 4
    assert one.ids == again.ids != other.ids
    assert one.images == again.images
    assert one.texts == {} and one.notes == []


def test_texts_that_prompts_take(tmp_path: Path) -> None:
    """A sample without one gives way to others, as extraction would fail its row."""
    samples = [
        {"png": encoded(0), "txt": b"a cat"},
        {"png": encoded(1)},
        {"png": encoded(2), "txt": b"a dog"},
    ]
    write(tmp_path / "a.tar", samples)
    made = spec(tmp_path, candidates=CAPTION, images=3)
    drawn = draw(made, list_shards(made.input))
    assert drawn.texts == {"caption": ["a cat", "a dog"]}
    assert "1 no-caption" in drawn.notes[1]


@pytest.mark.parametrize(("members", "expected"), [({"txt": b"a cat"}, True), ({}, False)])
def test_captioned(members: dict[str, bytes], expected: bool, tmp_path: Path) -> None:
    write(tmp_path / "a.tar", [{"png": encoded(0), **members}])
    made = spec(tmp_path)
    assert captioned(made, list_shards(made.input)) == expected


def test_some_of_them_are_evenly_spaced(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", [{"png": encoded(n)} for n in range(7)])
    made = spec(tmp_path, candidates=[], images=7)
    drawn = draw(made, list_shards(made.input))
    assert drawn.places(3) == [0, 2, 4]
    assert drawn.pick([0, 2]).ids == [drawn.ids[0], drawn.ids[2]]
    assert drawn.places(99) == list(range(7))


def test_fewer_than_asked_for_and_bad_ones_are_said(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", [{"png": encoded(0)}, {"png": b"no picture"}, {"png": encoded(2)}])
    made = spec(tmp_path, candidates=[])
    drawn = draw(made, list_shards(made.input))
    assert [key for _, key in drawn.ids] == ["s0", "s2"]
    assert drawn.notes[0] == "4 images were asked for, the shards have 2 good ones"
    assert drawn.notes[1].startswith("1 drawn images are bad and gave way to others: 1 ")


def test_one_image_is_not_enough(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", [{"png": encoded(0)}])
    made = spec(tmp_path, candidates=[])
    with pytest.raises(ValueError, match=r"found one good image; an interval needs two at least"):
        draw(made, list_shards(made.input))


def test_control_images_come_along(tmp_path: Path) -> None:
    samples: list[dict[str, Any]] = [{"jpg": encoded(n), "depth.png": encoded(9 + n)} for n in range(2)]
    samples += [{"jpg": encoded(5)}, {"jpg": encoded(6), "depth.png": b"no picture"}]
    write(tmp_path / "a.tar", samples)
    technique = {"type": "controlnet", "source": "x", "image": "field:depth.png"}
    made = spec(tmp_path, candidates=[{"name": "depth", "techniques": [technique]}], images=4)
    drawn = draw(made, list_shards(made.input))
    assert drawn.controls == {"depth.png": [encoded(9), encoded(10)]}
    assert "1 no-control" in drawn.notes[1] and drawn.notes[1].startswith("2 drawn images are bad")
