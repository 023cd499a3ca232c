"""From a published folder to shards that extraction and heads read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from fsspec.implementations.local import LocalFileSystem

from pipeline.members import MemberIndex
from pipeline.public import catalogue
from pipeline.shards import list_shards, read_shard
from pipeline.storage import open_fs
from schemas.dataset import DATASET, Annotation, Dataset, Pair, pairs_name
from schemas.spec import Input
from tests.public_sets import WRITERS, write_horse21, write_spair71k


def written(out: str) -> Dataset:
    fs, folder = open_fs(out)
    return Dataset.model_validate_json(fs.cat_file(f"{folder}/{DATASET}"))


def members(out: str) -> dict[str, dict[str, bytes]]:
    """All samples by key, read as extraction and as training do."""
    spec = Input(shards=f"{out}/*.tar")
    index = MemberIndex(out)
    found: dict[str, dict[str, bytes]] = {}
    for shard in list_shards(spec):
        for sample in read_shard(shard, spec):
            assert sample.reason is None and sample.key not in found
            found[sample.key] = index.read(shard.id, sample.key)
            assert sample.image in found[sample.key].values()
    return found


@pytest.mark.parametrize("name", WRITERS)
def test_every_data_set_can_be_read_again(name: str, tmp_path: Path) -> None:
    root = WRITERS[name](tmp_path / "in")
    out = str(tmp_path / "out")
    found = catalogue.find(name, str(tmp_path / "in"))
    urls = list(catalogue.write(found, out, 3))
    receipt = written(out)
    assert [Path(url).name for url in urls] == [
        shard for split in receipt.splits.values() for shard in split.shards
    ]
    samples = members(out)
    assert len(samples) == sum(split.samples for split in receipt.splits.values())
    for split, images in found.splits.items():
        assert receipt.splits[split].samples == len(images)
        assert -(-len(images) // 3) == len(receipt.splits[split].shards)
        for one in images:
            assert (root / one.image).read_bytes() == samples[one.key][one.image.rsplit(".", 1)[1]]
    label = "json" if receipt.task == "correspondence" else "seg.png"
    assert all(len(sample) == 2 and label in sample for sample in samples.values())
    assert receipt.ignore == (None if receipt.task == "correspondence" else 255)


def test_same_bytes_each_time(tmp_path: Path) -> None:
    """A shard's version is its ETag, so features would be extracted again."""
    for name in ("ade20k", "spair71k"):
        root = WRITERS[name](tmp_path / "in")
        for out in ("one", "two"):
            list(catalogue.write(catalogue.find(name, str(root)), str(tmp_path / name / out), 3))
            for file in root.rglob("*.*"):
                file.touch()
        one, two = (
            {path.name: path.read_bytes() for path in (tmp_path / name / out).iterdir()}
            for out in ("one", "two")
        )
        assert one == two and len(one) > 3


@pytest.mark.s3
def test_from_and_to_s3(s3: Callable[[], str], tmp_path: Path) -> None:
    root, bucket = write_spair71k(tmp_path, {"trn": 2, "val": 2, "test": 2}), s3()
    fs, folder = open_fs(bucket)
    fs.put(str(root), f"{folder}/SPair-71k", recursive=True)
    found = catalogue.find("spair71k", bucket)
    urls = list(catalogue.write(found, f"{bucket}/out", 10))
    assert urls[0] == f"{bucket}/out/trn-000000.tar"
    samples = members(f"{bucket}/out")
    for split in written(f"{bucket}/out").splits:
        for line in fs.cat_file(f"{folder}/out/{pairs_name(split)}").splitlines():
            pair = Pair.model_validate_json(line)
            for key in (pair.source, pair.target):
                assert Annotation.model_validate_json(samples[key]["json"]).category == pair.category


def test_an_unknown_data_set() -> None:
    with pytest.raises(ValueError, match=r"dataset 'coco' is not known; known are ade20k, .*, spair71k"):
        catalogue.find("coco", "/data")


@pytest.mark.parametrize("name", WRITERS)
def test_another_data_set_s_folder(name: str, tmp_path: Path) -> None:
    other = "horse21" if name == "spair71k" else "spair71k"
    root = WRITERS[other](tmp_path)
    with pytest.raises(ValueError, match=r"not the folder of the data set .*: looked for .* found .*Unpack"):
        catalogue.find(name, str(root))


def test_a_failed_write_has_no_receipt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = catalogue.find("horse21", str(write_horse21(tmp_path, train=4)))
    real = LocalFileSystem.cat_file

    def failing(self: LocalFileSystem, path: str, *args: object) -> bytes:
        if path.endswith("image_0000003.png"):
            raise OSError("disk on fire")
        data: bytes = real(self, path, *args)
        return data

    monkeypatch.setattr(LocalFileSystem, "cat_file", failing)
    with pytest.raises(OSError, match="disk on fire"):
        list(catalogue.write(found, str(tmp_path / "out"), 2))
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["train-000000.tar"]
