from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from webdataset import TarWriter

from pipeline.gate.sampling import draw
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
    write(tmp_path / "a.tar", [{"png": encoded(0), "txt": b"a cat"}, {"png": encoded(1)}])
    made = spec(tmp_path, candidates=CAPTION, images=2)
    drawn = draw(made, list_shards(made.input))
    assert drawn.texts == {"caption": ["a cat", ""]}
    assert drawn.notes == ["1 of 2 images have no caption; it is left empty in prompts"]


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
    write(
        tmp_path / "a.tar",
        [{"jpg": encoded(n), "depth.png": encoded(9 + n)} for n in range(2)] + [{"jpg": encoded(5)}],
    )
    technique = {"type": "controlnet", "source": "x", "image": "field:depth.png"}
    made = spec(tmp_path, candidates=[{"name": "depth", "techniques": [technique]}], images=3)
    drawn = draw(made, list_shards(made.input))
    assert drawn.controls == {"depth.png": [encoded(9), encoded(10)]}
    assert "1 no-control" in drawn.notes[1]
