from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.training.images import Images, as_input, read_images
from tests.tars import make_tar, png


def test_all_in_order(images: Images, scene_shards: Path) -> None:
    assert images.pixels.shape == (24, 3, 64, 64)
    assert images.pixels.dtype == torch.uint8
    assert len(images) == len(images.captions) == 24
    second = read_images(str(scene_shards / "seen-000012.tar"), 64)
    assert torch.equal(second.pixels, images.pixels[12:])
    assert second.captions == images.captions[12:]


def test_a_limit(images: Images, scene_shards: Path) -> None:
    some = read_images(str(scene_shards / "seen-*.tar"), 64, 14)
    assert torch.equal(some.pixels, images.pixels[:14])


def test_input_is_in_the_unit_range(images: Images) -> None:
    found = as_input(torch.tensor([0, 255], dtype=torch.uint8).expand(1, 3, 4, 2))
    assert found[..., 0].unique().tolist() == [-1]
    assert found[..., 1].unique().tolist() == [1]
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_bad_images_are_refused(tmp_path: Path) -> None:
    make_tar(tmp_path / "a.tar", [("one.png", b"no picture"), ("one.txt", b"a caption")])
    with pytest.raises(ValueError, match=r"a\.tar: sample 'one' cannot be trained on: undecodable"):
        read_images(str(tmp_path / "a.tar"), 64)


def test_captions_are_needed(tmp_path: Path) -> None:
    make_tar(tmp_path / "a.tar", [("one.png", png(8, 8))])
    with pytest.raises(ValueError, match=r"sample 'one' cannot be trained on: no-caption"):
        read_images(str(tmp_path / "a.tar"), 64)
