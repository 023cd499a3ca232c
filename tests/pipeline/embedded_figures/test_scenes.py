"""Scenes come out of shards as they went in, and what is no scene is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.embedded_figures.scenes import read_scenes, shuffled_captions
from tests.evaluation_scenes import encoded, scene, write
from tests.tars import make_tar


def test_round_trip(tmp_path: Path) -> None:
    made = [scene(0), scene(1, quality="blurry", classes=[3, 12])]
    found = read_scenes(write(tmp_path / "a.tar", made), 10)
    assert len(found) == 2
    for one, other in zip(found, made, strict=True):
        assert one.id == other.id and one.caption == other.caption and one.class_ids == other.class_ids
        assert one.quality == other.quality
        np.testing.assert_array_equal(one.pixels, other.pixels)
        np.testing.assert_array_equal(one.labels, other.labels)


def test_shards_from_before_scenes_had_a_quality(tmp_path: Path) -> None:
    made = [scene(0, quality="sharp")]
    (found,) = read_scenes(write(tmp_path / "a.tar", made, known_quality=False), 1)
    assert found.quality == "plain"


def test_sample_shards_are_scenes() -> None:
    found = read_scenes("embedded", 3)
    assert len(found) == 3 and all(one.class_ids and one.labels.any() for one in found)


def test_passes_over_what_something_was_trained_on(tmp_path: Path) -> None:
    """By the shard's file name, since the same shard may lie in another folder now."""
    (tmp_path / "deep").mkdir()
    url = write(tmp_path / "deep" / "a.tar", [scene(number) for number in range(4)])
    found = read_scenes(url, 2, without={"a.tar/scene000", "a.tar/scene002", "b.tar/scene001"})
    assert [one.id[1] for one in found] == ["scene001", "scene003"]


def test_content_is_without_words_on_quality() -> None:
    assert scene(1, quality="sharp").content == scene(1).caption == scene(1).content


def test_shuffled_captions_are_of_other_classes() -> None:
    """Guards against a neighbour's caption that fits as well."""
    scenes = [scene(0, classes=[1]), scene(1, classes=[1, 2]), scene(2, classes=[2]), scene(3, classes=[1])]
    assert shuffled_captions(scenes) == [scenes[2].caption, None, scenes[3].caption, scenes[2].caption]
    assert shuffled_captions(scenes[:1]) == [None]


def test_samples_that_are_no_scenes(tmp_path: Path) -> None:
    """Each problem is named with its sample."""
    good = scene(0)
    known = {"objects": [{"class_id": 1}]}
    members = {
        "jpg": encoded(good.pixels),
        "json": json.dumps(known).encode(),
        "seg.png": encoded(good.labels),
        "txt": b"a photo",
    }
    broken: list[tuple[dict[str, bytes | None], str]] = [
        ({"txt": None}, "caption"),
        ({"json": None}, "no member s.json"),
        ({"json": b"{}"}, "'objects'"),
        ({"json": json.dumps({**known, "quality": "good"}).encode()}, "quality 'good', and known are plain"),
        ({"seg.png": encoded(good.labels[:8])}, r"uint8 \[8, 64\]"),
        ({"seg.png": encoded(good.labels + 12)}, "values up to 13"),
    ]
    for number, (change, message) in enumerate(broken):
        path = tmp_path / f"{number}.tar"
        kept = {name: data for name, data in (members | change).items() if data is not None}
        make_tar(path, [(f"s.{name}", data) for name, data in kept.items()])
        with pytest.raises(ValueError, match=f"sample 's' of {number}.tar is no scene: .*{message}"):
            read_scenes(str(path), 1)


def test_scenes_of_several_sizes(tmp_path: Path) -> None:
    url = write(tmp_path / "a.tar", [scene(0, size=64), scene(1, size=128)])
    with pytest.raises(ValueError, match="scenes of several sizes"):
        read_scenes(url, 2)


def test_no_scenes(tmp_path: Path) -> None:
    make_tar(tmp_path / "a.tar", [])
    with pytest.raises(ValueError, match="no scene in it"):
        read_scenes(str(tmp_path / "a.tar"), 2)
