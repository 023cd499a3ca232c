"""Images in a folder, or a public data set, to shards and back to samples, through the command."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs.cli import app
from jobs.shard import shard, shard_dataset
from pipeline.shards import list_shards, read_shard
from schemas.spec import Input
from tests.public_sets import write_horse21, write_spair71k
from tests.tars import jpeg


def test_folder_to_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in").mkdir()
    for i in range(3):
        (tmp_path / "in" / f"{i}.jpg").write_bytes(jpeg(4, 4, i))
    shard([str(tmp_path / "in")], out=str(tmp_path / "out"), shard_size=2)
    printed = capsys.readouterr().out.splitlines()
    spec = Input(shards=str(tmp_path / "out" / "*.tar"), caption_field=None)
    shards = list_shards(spec)
    assert [one.url for one in shards] == printed
    images = [sample.image for one in shards for sample in read_shard(one, spec)]
    assert images == [jpeg(4, 4, i) for i in range(3)]


def test_data_set_to_shards(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_horse21(tmp_path, train=3, test=1)
    out = tmp_path / "out"
    shard_dataset("horse21", [str(tmp_path)], str(out), 2)
    printed = capsys.readouterr()
    assert printed.out.splitlines() == [
        str(out / name) for name in ("train-000000.tar", "train-000001.tar", "test-000000.tar")
    ]
    assert printed.err == "horse21: 3 train, 1 test images; 21 classes\n"
    assert (out / "dataset.json").exists()


def test_shared_images_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A head that was trained on an image it is tested on looks better than it is."""
    root = write_spair71k(tmp_path)
    for part in ("Layout/large/{}.txt", "PairAnnotation/{}"):
        source, target = root / part.format("trn"), root / part.format("test")
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        else:
            shutil.copy(source, target)
    shard_dataset("spair71k", [str(root)], str(tmp_path / "out"))
    assert "spair71k: 6 images are in several splits" in capsys.readouterr().err


def test_nothing_is_written_unless_all_is_well(tmp_path: Path) -> None:
    root = write_horse21(tmp_path)
    (root / "real" / "test" / "image_0000000.npy").unlink()
    with pytest.raises(ValueError, match="no mask"):
        shard_dataset("horse21", [str(root)], str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_shards_that_are_there_are_noticed_first(tmp_path: Path) -> None:
    """Not after minutes of checking labels."""
    (tmp_path / "old.tar").touch()
    with pytest.raises(ValueError, match=r"already holds shards .* give an empty folder"):
        shard_dataset("horse21", ["/nowhere"], str(tmp_path))


def test_the_command(tmp_path: Path) -> None:
    write_horse21(tmp_path, train=3, test=1)
    out = tmp_path / "out"
    line = ["shard", str(tmp_path), "--out", str(out), "--shard-size", "2", "--dataset"]
    done = CliRunner().invoke(app, [*line, "horse21"])
    assert done.exit_code == 0, done.output
    assert len(list(out.glob("*.tar"))) == 3
    done = CliRunner().invoke(app, [*line, "horse21"])
    assert done.exit_code == 2 and "already holds shards" in done.stderr
    line[3] = str(tmp_path / "other")
    done = CliRunner().invoke(app, [*line, "horse-21"])
    assert done.exit_code == 2 and "dataset 'horse-21' is not known; known are ade20k" in done.stderr
    done = CliRunner().invoke(app, ["shard", "a", "b", "--out", str(tmp_path / "o"), "--dataset", "horse21"])
    assert (
        done.exit_code == 2 and "2 paths given with --dataset; give the one folder of horse21" in done.stderr
    )
