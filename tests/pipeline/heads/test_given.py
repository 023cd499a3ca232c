"""Pictures are found in the order given, with what their prompts take, and whatever lacks is named with the cure."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import fsspec
import pytest
from PIL import Image

from pipeline.heads.given import find
from schemas.spec import ExtractSpec
from tests.engines import group, make_spec
from tests.tars import encode, jpeg, pixels, png

PLAIN = make_spec()
WORDS = make_spec(group(), group("words", prompt="{caption}, sharp"))


def controlled(**fields: Any) -> ExtractSpec:
    technique = {"type": "controlnet", "source": "unused", "image": "field:depth.png"}
    return make_spec(group("edges", techniques=[technique]), **fields)


def test_order_keys_and_sizes(tmp_path: Path) -> None:
    """For correspondence the first one is the source; a photograph on its side is as wide as it is shown."""
    (tmp_path / "more" / "deep").mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encode(Image.fromarray(pixels(40, 60)), "JPEG", exif=exif)
    (tmp_path / "z.jpg").write_bytes(turned)
    for name in ("more/b.png", "more/a.png", "more/deep/a.png"):
        (tmp_path / name).write_bytes(png(8, 9))
    (tmp_path / "more" / "notes.txt").write_text("no image")
    found = find([f"{tmp_path}/z.jpg", f"{tmp_path}/more", f"{tmp_path}/z.jpg"], PLAIN)
    assert [one.key for one in found] == ["z", "a", "b", "deep/a"]
    assert [one.size for one in found] == [(60, 40), *[(8, 9)] * 3]
    assert found[0].url == f"{tmp_path}/z.jpg" and found[0].read() == turned
    assert not found[0].texts and not found[0].controls


def test_any_file_system() -> None:
    with fsspec.open("memory://given/a.jpg", "wb") as file:
        file.write(jpeg(8, 8))
    (found,) = find(["memory://given"], PLAIN)
    assert found.read() == jpeg(8, 8)


def test_what_belongs_to_others_is_no_picture(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A folder unpacked from shards has masks beside its pictures."""
    for name in ("a.jpg", "a.seg.png", "b.1.jpg"):
        (tmp_path / name).write_bytes(png(8, 8))
    with caplog.at_level(logging.WARNING, "gatehouse"):
        found = find([str(tmp_path)], PLAIN)
    assert [one.key for one in found] == ["a", "b_1"]
    assert caplog.messages == [f"1 images are left out that belong to others, such as {tmp_path}/a.seg.png"]


def test_predictions_are_no_pictures(tmp_path: Path) -> None:
    """The same command again would predict on what it has drawn, and write over a picture that lies in its folder."""
    (tmp_path / "out").mkdir()
    for name in ("a.jpg", "out/a.png", "output.jpg"):
        (tmp_path / name).write_bytes(png(8, 8))
    found = find([str(tmp_path)], PLAIN, out=f"{tmp_path}/out")
    assert [one.key for one in found] == ["a", "output"]
    with pytest.raises(ValueError, match=r"no images in .* outside of .*, where predictions are written"):
        find([str(tmp_path)], PLAIN, out=str(tmp_path))


def test_captions(tmp_path: Path) -> None:
    """The text beside a picture goes before the one that is for all."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.jpg").write_bytes(jpeg(8, 8))
    (tmp_path / "a.txt").write_bytes("\ufeff a crow\n".encode())
    found = find([str(tmp_path)], WORDS, caption="a bird")
    assert [one.texts for one in found] == [{"caption": "a crow"}, {"caption": "a bird"}]
    with pytest.raises(
        ValueError,
        match=r"^[^\n]*/b\.jpg: the prompt of feature group 'words' has \{caption\}; put b\.txt beside the picture,"
        r" or give --caption$",
    ):
        find([str(tmp_path)], WORDS)


def test_texts_from_json(tmp_path: Path) -> None:
    """Wherever the job read its captions."""
    (tmp_path / "a.jpg").write_bytes(jpeg(8, 8))
    spec = make_spec(
        group("a", prompt="{caption} at {json:place}"), input={"shards": "x", "caption_field": "json:text"}
    )
    (tmp_path / "a.json").write_text(json.dumps({"text": "a crow", "place": " the shore "}))
    (found,) = find([str(tmp_path)], spec)
    assert found.texts == {"caption": "a crow", "json:place": "the shore"}
    (tmp_path / "a.json").write_text(json.dumps({"text": "a crow"}))
    with pytest.raises(
        ValueError, match=r"'a' has \{json:place\}; put a\.json with the field 'place' beside"
    ):
        find([str(tmp_path)], spec)
    (tmp_path / "a.json").write_text(json.dumps({"text": 3}))
    with pytest.raises(ValueError, match=r"a\.json: field 'text' is a int; a prompt takes a string"):
        find([str(tmp_path)], spec)
    for damaged in (b"{", b"\xff"):
        (tmp_path / "a.json").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"a\.json cannot be read \(.*\); it must be JSON in UTF-8"):
            find([str(tmp_path)], spec)


def test_control_images(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(40, 60))
    spec = controlled()
    with pytest.raises(
        ValueError, match=r"group 'edges' takes a control image; put it beside .* as a\.depth\.png"
    ):
        find([str(tmp_path)], spec)
    (tmp_path / "a.depth.png").write_bytes(png(60, 40))
    with pytest.raises(ValueError, match=r"control image a\.depth\.png: field-aspect: has 60 x 40 pixels"):
        find([str(tmp_path)], spec)
    (tmp_path / "a.depth.png").write_bytes(png(20, 30))
    (found,) = find([str(tmp_path)], spec)
    assert found.control("depth.png") == png(20, 30)


def test_all_faults_are_named(tmp_path: Path) -> None:
    """Not one at a time; and only so many of thousands."""
    for number in range(12):
        (tmp_path / f"{number:02}.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="undecodable-image") as error:
        find([str(tmp_path)], PLAIN)
    lines = str(error.value).splitlines()
    assert [line.split(":")[0] for line in lines[:8]] == [
        f"{tmp_path}/{number:02}.jpg" for number in range(8)
    ]
    assert lines[8:] == ["and 4 more"]


def test_pictures_that_the_job_would_refuse(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(jpeg(8, 8))
    with pytest.raises(ValueError, match="decompression-bomb: declares 8 x 8 pixels"):
        find([str(tmp_path)], make_spec(input={"shards": "x", "max_pixels": 60}))
    with pytest.raises(ValueError, match="no such file or folder"):
        find([f"{tmp_path}/none.jpg"], PLAIN)
