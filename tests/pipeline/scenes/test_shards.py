from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.scenes.cutouts import find_cutouts
from pipeline.scenes.shards import Split, scene, write_scenes
from pipeline.shards import list_shards, read_shard
from schemas.spec import Input
from tests.stamps import DRAWN, HELD_OUT, SEEN, make_stamps


@pytest.fixture(scope="module")
def stamps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_stamps(tmp_path_factory.mktemp("stamps"))


def test_the_same_scenes_in_other_shards(stamps: Path, tmp_path: Path) -> None:
    """A scene depends on its number: not on shards, processes or how many there are."""
    one = list(write_scenes(tmp_path / "one", "seen", 6, stamps=stamps, size=48, per_shard=6))
    many = write_scenes(
        tmp_path / "many", "seen", 4, stamps=stamps, size=48, per_shard=2, processes=2, first=2
    )
    alone = {name: data for path in one for name, data in _members(path).items()}
    shared = {name: data for path in many for name, data in _members(path).items()}
    assert len(shared) == 4 * 5
    assert shared.items() <= alone.items()


def test_the_job_reads_them(stamps: Path, tmp_path: Path) -> None:
    paths = list(write_scenes(tmp_path, "held-out", 5, stamps=stamps, size=48))
    spec = Input(shards=[str(path) for path in paths])
    [shard] = list_shards(spec)
    samples = list(read_shard(shard, spec))
    assert [sample.reason for sample in samples] == [None] * 5
    assert [sample.key for sample in samples] == [f"held-out-{number:06d}" for number in range(5)]
    assert all(sample.caption and sample.caption.startswith("a photo of a ") for sample in samples)


def test_labels_are_what_was_composed(stamps: Path, tmp_path: Path) -> None:
    [path] = write_scenes(tmp_path, "held-out", 3, stamps=stamps, size=48)
    members = _members(path)
    pool = [cutout for cutout in find_cutouts(stamps) if cutout.held_out]
    for number in range(3):
        made = scene(number, "held-out", pool, 48)
        key = f"held-out-{number:06d}"
        assert np.array_equal(np.array(Image.open(io.BytesIO(members[f"{key}.seg.png"]))), made.classes)
        assert np.array_equal(
            np.array(Image.open(io.BytesIO(members[f"{key}.instances.png"]))), made.instances
        )
        document = json.loads(members[f"{key}.json"])
        assert document["quality"] == made.quality
        assert [one["cutout"] for one in document["objects"]] == [one.cutout.name for one in made.things]
        assert {one["cutout"] for one in document["objects"]} <= set(HELD_OUT)
        picture = np.array(Image.open(io.BytesIO(members[f"{key}.jpg"]))).astype(int)
        assert np.abs(picture - made.pixels).mean() < 6  # JPEG


@pytest.mark.parametrize(("split", "cutouts"), [("seen", SEEN), ("held-out", HELD_OUT), ("drawn", DRAWN)])
def test_scenes_show_cutouts_of_their_split(
    stamps: Path, tmp_path: Path, split: Split, cutouts: tuple[str, ...]
) -> None:
    [path] = write_scenes(tmp_path, split, 30, stamps=stamps, size=48)
    shown = {
        one["cutout"]
        for name, data in _members(path).items()
        if name.endswith(".json")
        for one in json.loads(data)["objects"]
    }
    assert shown == set(cutouts)


def test_shards_of_another_division_are_not_mixed_in(stamps: Path, tmp_path: Path) -> None:
    """They would hold the same scenes again."""
    list(write_scenes(tmp_path, "seen", 4, stamps=stamps, size=48, per_shard=2))
    list(write_scenes(tmp_path, "seen", 4, stamps=stamps, size=48, per_shard=2))  # the same again is no fault
    with pytest.raises(ValueError, match=r"holds seen-000002\.tar, which is not among the 1 shards"):
        list(write_scenes(tmp_path, "seen", 4, stamps=stamps, size=48, per_shard=4))


def test_no_stamps_of_the_split(tmp_path: Path) -> None:
    folder = make_stamps(tmp_path / "stamps")
    for name in HELD_OUT:
        (folder / name).unlink()
    with pytest.raises(ValueError, match="no stamps that are held-out"):
        list(write_scenes(tmp_path / "out", "held-out", 1, stamps=folder))


def _members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
