from __future__ import annotations

import numpy as np
import pytest

from pipeline.scenes.captions import QUALITY_WORDS
from pipeline.scenes.compose import Scene, compose
from pipeline.scenes.cutouts import CLASSES, Cutout, find_cutouts
from pipeline.scenes.grounds import GROUNDS, ground
from tests.stamps import make_stamps

SIZE = 64


@pytest.fixture(scope="module")
def cutouts(tmp_path_factory: pytest.TempPathFactory) -> list[Cutout]:
    return find_cutouts(make_stamps(tmp_path_factory.mktemp("stamps")))


@pytest.fixture(scope="module")
def scenes(cutouts: list[Cutout]) -> list[Scene]:
    return [compose(cutouts, SIZE, np.random.default_rng(seed)) for seed in range(120)]


def test_the_generator_decides_all(cutouts: list[Cutout]) -> None:
    one, same, other = (compose(cutouts, SIZE, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert np.array_equal(one.pixels, same.pixels)
    assert one.caption == same.caption
    assert not np.array_equal(one.pixels, other.pixels)


def test_masks_agree_with_the_things(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert scene.pixels.shape == (SIZE, SIZE, 3)
        for place, thing in enumerate(scene.things):
            assert set(scene.classes[scene.instances == place + 1]) <= {thing.cutout.class_id}
        assert np.array_equal(scene.classes == 0, scene.instances == 0)


def test_the_last_thing_is_seen(scenes: list[Scene]) -> None:
    """Nothing covers it, and at most an eighth of each side lies outside."""
    for scene in scenes:
        _, _, width, height = scene.things[-1].box
        assert (scene.instances == len(scene.things)).sum() > 0.3 * width * height


def test_masks_are_where_things_are_opaque(cutouts: list[Cutout]) -> None:
    """Against an ellipse drawn from its equation: the stamps are ellipses that fill their boxes."""
    scenes = [compose(cutouts, 128, np.random.default_rng(seed)) for seed in range(40)]
    for scene in (scene for scene in scenes if len(scene.things) == 1):
        x, y, width, height = scene.things[0].box
        row, column = np.mgrid[0:128, 0:128] + 0.5
        radius = np.hypot((column - x - width / 2) / (width / 2), (row - y - height / 2) / (height / 2))
        pixel = 2 / min(width, height)
        assert scene.instances[radius < 1 - 1.5 * pixel].all()
        assert not scene.instances[radius > 1 + 1.5 * pixel].any()


def test_every_thing_that_a_caption_names_is_seen(scenes: list[Scene]) -> None:
    for scene in scenes:
        for place, thing in enumerate(scene.things):
            _, _, width, height = thing.box
            assert (scene.instances == place + 1).sum() > 0.15 * width * height


def test_captions_tell_what_is_there(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert scene.ground in scene.caption
        assert scene.caption.endswith(QUALITY_WORDS[scene.quality] or scene.ground)
        assert scene.caption.count(" and ") == len(scene.things) - 1
        for thing in scene.things:
            words = scene.caption.replace(",", "").split()
            assert CLASSES[thing.cutout.class_id] in words or thing.cutout.caption in words


def test_everything_occurs(scenes: list[Scene]) -> None:
    assert {scene.quality for scene in scenes} == set(QUALITY_WORDS)
    assert {scene.ground for scene in scenes} == set(GROUNDS)
    assert {len(scene.things) for scene in scenes} == {1, 2, 3}
    assert {thing.flipped for scene in scenes for thing in scene.things} == {True, False}
    for words in ("large", "small", "on the left", "on the right"):
        assert any(words in scene.caption for scene in scenes)


def test_words_of_place_and_size_are_true(scenes: list[Scene]) -> None:
    for scene in (scene for scene in scenes if len(scene.things) == 1):
        x, _, width, height = scene.things[0].box
        if "on the left" in scene.caption:
            assert x + width / 2 < SIZE / 2
        if "on the right" in scene.caption:
            assert x + width / 2 >= SIZE / 2
        assert ("large" not in scene.caption) or max(width, height) > 0.65 * SIZE
        assert ("small" not in scene.caption) or max(width, height) <= 0.65 * SIZE


def test_blurry_is_softer_and_noisy_rougher(cutouts: list[Cutout]) -> None:
    """Each quality of the same picture, by the mean difference of neighbours."""
    from pipeline.scenes.compose import _developed

    pixels = compose(cutouts, SIZE, np.random.default_rng(0)).pixels.astype(np.float32)
    rough = {
        quality: float(np.abs(np.diff(_developed(pixels, quality, np.random.default_rng(1)), axis=1)).mean())
        for quality in QUALITY_WORDS
    }
    assert rough["blurry"] < rough["plain"] < rough["sharp"]
    assert rough["noisy"] > rough["sharp"]


@pytest.mark.parametrize("name", GROUNDS)
def test_grounds(name: str) -> None:
    pixels = ground(name, SIZE, np.random.default_rng(0))
    assert pixels.shape == (SIZE, SIZE, 3)
    assert pixels.min() >= 0
    assert pixels.max() <= 255
    assert pixels.std() > 2  # not one colour
