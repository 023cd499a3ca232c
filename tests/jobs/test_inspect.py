"""What `gatehouse inspect` prints and draws."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jobs import inspect
from pipeline import FeatureStore
from pipeline.batches import Assignment
from pipeline.decode import decode
from pipeline.pca import fit
from pipeline.picture import Column
from tests.attempts import make_store, manifest, shard, store_shard
from tests.stores import CHANNELS, TAPS
from tests.tars import jpeg


@pytest.fixture
def columns(monkeypatch: pytest.MonkeyPatch) -> list[Column]:
    """What is drawn."""
    drawn: list[Column] = []

    def spy(columns: list[Column], *rest: object) -> Image.Image:
        drawn.extend(columns)
        return Image.new("RGB", (1, 1))

    monkeypatch.setattr(inspect, "draw", spy)
    return drawn


def test_the_command(
    built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The tables, and a picture in the current folder whose path is the last line."""
    monkeypatch.chdir(tmp_path)
    assert inspect.run(f"{built}/store/", out=None, rows=3) == inspect.DONE
    output = capsys.readouterr().out
    assert output.splitlines()[-1] == "store-inspect.png"
    with Image.open(tmp_path / "store-inspect.png") as image:
        assert image.width > 5 * 150 and image.height > 3 * 150
    lines = [line.split() for line in output.splitlines()]
    assert ["plain", TAPS[0], f"{CHANNELS[0]}x2x2", "float16", "9"] in [line[:5] for line in lines]
    assert ["caption", TAPS[1], f"{CHANNELS[1]}x4x4", "float16", "8"] in [line[:5] for line in lines]
    assert ["partial", "no-caption", "1"] in lines
    assert ["failed", "undecodable-image", "1"] in lines


def test_stored_bytes_are_those_of_the_blocks(built: Path) -> None:
    """Beside the raw bytes of good rows only: failed ones take no space."""
    table = inspect._arrays_table(FeatureStore(str(built / "store")))
    files = (built / "store" / "features" / "plain" / TAPS[1] / "c").rglob("0")
    stored = sum(file.stat().st_size for file in files if file.is_file())
    assert list(table.columns[5].cells)[1] == f"{stored / 1024:.1f} KiB"
    assert list(table.columns[6].cells)[1] == f"{stored / (9 * CHANNELS[1] * 16 * 2):.2f}"


def test_the_picture_shows_stored_rows_beside_their_images(
    built: Path, tmp_path: Path, columns: list[Column]
) -> None:
    """The first and the last good row are among those shown; image and features belong together."""
    inspect.run(str(built / "store"), out=str(tmp_path / "x.png"), rows=2)
    assert [(column.group, column.title) for column in columns] == [
        ("", "image"),
        *[(group, tap) for group in ("plain", "caption") for tap in TAPS],
    ]
    images = columns[0].cells
    for image, wanted in zip(images, (jpeg(40, 60, seed=0), jpeg(60, 40, seed=12)), strict=True):
        assert image is not None
        assert (image == np.moveaxis(decode(wanted, (64, 64), 10**6).pixels, 0, -1)).all()
    store = FeatureStore(str(built / "store"))
    good = store.rows()
    maps = store.read(good[[0, -1]], [f"caption/{TAPS[1]}"])[f"caption/{TAPS[1]}"]
    assert (
        np.stack([cell for cell in columns[-1].cells if cell is not None]) == fit(maps).colours(maps)
    ).all()


def test_without_the_shards(
    small_store: Path, tmp_path: Path, columns: list[Column], capsys: pytest.CaptureFixture[str]
) -> None:
    """A store that was moved elsewhere is shown without images, and says so."""
    manifest = json.loads((small_store / "manifest.json").read_text())
    manifest["spec"]["input"]["shards"] = str(tmp_path / "gone" / "*.tar")
    (small_store / "manifest.json").write_text(json.dumps(manifest))
    inspect.run(str(small_store), out=str(tmp_path / "x.png"), rows=2)
    assert len(columns) == 4
    assert "no images: input.shards:" in capsys.readouterr().out


def test_an_image_that_changed(
    built: Path, small_store: Path, tmp_path: Path, columns: list[Column], capsys: pytest.CaptureFixture[str]
) -> None:
    """Another picture under the same name beside the features would mislead."""
    shutil.copytree(built / "shards", tmp_path / "shards")
    shard = tmp_path / "shards" / "a.tar"
    data = bytearray(shard.read_bytes())
    data[1024 + 300] ^= 1  # inside the first image
    shard.write_bytes(data)
    manifest = json.loads((small_store / "manifest.json").read_text())
    manifest["spec"]["input"]["shards"] = [str(shard), str(tmp_path / "shards" / "sub" / "b.tar")]
    (small_store / "manifest.json").write_text(json.dumps(manifest))
    inspect.run(str(small_store), out=str(tmp_path / "x.png"), rows=2)
    assert [cell is None for cell in columns[0].cells] == [True, False]
    assert "a.tar 0: changed: the image is not the one" in "".join(capsys.readouterr().out.split("\n"))


def test_nothing_good_to_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url, made_of = str(tmp_path / "store"), manifest()
    make_store(url, made_of)
    store_shard(url, made_of, Assignment(shard()), ["a"], {"a": "empty-image"})
    assert inspect.run(url, out=str(tmp_path / "x.png"), rows=2) == inspect.DONE
    assert "no picture: no row is good in every group" in capsys.readouterr().out
    assert not (tmp_path / "x.png").exists()
