from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.scenes.shards import write_scenes
from pipeline.training.images import Images, read_images
from tests.stamps import make_stamps


@pytest.fixture(scope="session")
def scene_shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two shards of seen scenes and one of held-out ones, 64 px."""
    folder = tmp_path_factory.mktemp("scenes")
    stamps = make_stamps(tmp_path_factory.mktemp("stamps"))
    list(write_scenes(folder, "seen", 24, stamps=stamps, size=64, per_shard=12))
    list(write_scenes(folder, "held-out", 8, stamps=stamps, size=64))
    return folder


@pytest.fixture(scope="session")
def images(scene_shards: Path) -> Images:
    return read_images(str(scene_shards / "seen-*.tar"), 64)
