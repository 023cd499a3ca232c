"""The command: each task's files and tables, and what is wrong said before a backbone is loaded."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

import jobs.predict
from jobs.cli import app
from pipeline.frames import Frame
from pipeline.heads.given import Given
from pipeline.labels import IGNORE, Masks
from tests import labelled as shapes
from tests.engines import copy_backbone, make_spec
from tests.trained_heads import head

NUMBERS = list(shapes.SHARDS["test-0.tar"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures that the heads were not trained on; not to be changed."""
    made = tmp_path_factory.mktemp("pictures")
    for number in NUMBERS:
        (made / f"{shapes.key_of(number)}.png").write_bytes(shapes.members(number)["png"])
    return made


@pytest.fixture
def no_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(*_: Any, **__: Any) -> None:
        raise AssertionError("the backbone was loaded")

    monkeypatch.setattr(jobs.predict, "extractor", loaded)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["predict", *map(str, arguments)], env={"COLUMNS": "200"})


def test_masks(labelled: Path, folder: Path, tmp_path: Path) -> None:
    """Each at its picture's own size, under its picture's own name; more of them than a batch of 8 holds."""
    shutil.copytree(folder, tmp_path / "in")
    (tmp_path / "in" / "more").mkdir()
    (tmp_path / "in" / "more" / "one.png").write_bytes(shapes.members(3)["png"])
    out = tmp_path / "out"
    done = run(head(labelled, "label-scarce"), tmp_path / "in", "--out", out)
    assert done.exit_code == 0, done.output
    keys = ["more/one", *map(shapes.key_of, NUMBERS)]
    assert done.stdout.splitlines() == [f"{out}/{key}.png" for key in keys]
    assert {str(path.relative_to(out)) for path in out.rglob("*.png")} == {
        f"{key}{ending}" for key in keys for ending in (".png", ".seg.png")
    }
    hits = []
    for number in NUMBERS:
        size = shapes.size_of(number)
        data = (out / f"{shapes.key_of(number)}.seg.png").read_bytes()
        found = Masks(classes=3).decode({"seg.png": data}, Frame(size, size)).numpy()
        truth = Masks(classes=3).decode(shapes.members(number), Frame(size, size)).numpy()
        hits.append((found == truth)[truth != IGNORE].mean())
    assert np.mean(hits) > 0.85


def test_classes(labelled: Path, folder: Path, tmp_path: Path) -> None:
    done = run(head(labelled, "classification"), folder, "--out", tmp_path)
    assert done.exit_code == 0, done.output
    lines = [line for line in done.stdout.splitlines() if "picture-" in line]
    likeliest = [line.split("│")[2].split()[0] for line in lines]
    truth = [shapes.IDS[int(shapes.members(number)["cls"])] for number in NUMBERS]
    assert np.mean([one == other for one, other in zip(likeliest, truth, strict=True)]) > 0.7
    assert [path.name for path in tmp_path.iterdir()] == ["classes.png"]
    assert Image.open(io.BytesIO((tmp_path / "classes.png").read_bytes())).format == "PNG"


def test_points(labelled: Path, folder: Path, tmp_path: Path) -> None:
    """The first picture is the source, whatever the names are."""
    source, *targets = (folder / f"{shapes.key_of(number)}.png" for number in (20, 18, 16))
    given = ["--points", "10,8.5 30,20", "--points", "5,5"]
    done = run(head(labelled, "correspondence"), source, *targets, "--out", tmp_path, *given)
    assert done.exit_code == 0, done.output
    assert {path.name for path in tmp_path.iterdir()} == {target.name for target in targets}
    rows = [line.split("│")[1:4] for line in done.stdout.splitlines() if line.startswith("│")]
    assert [row[1].strip() for row in rows] == ["10.0, 8.5", "30.0, 20.0", "5.0, 5.0"] * 2
    found = np.array([[float(one) for one in row[2].split(",")] for row in rows])
    sizes = [shapes.size_of(number)[::-1] for number in (18, 18, 18, 16, 16, 16)]
    assert (found > 0).all() and (found < np.array(sizes)).all()


def test_a_grid_of_points_where_all_has_moved(labelled: Path, folder: Path, tmp_path: Path) -> None:
    """A head on another machine, with its store's manifest and the backbone's folder."""
    url = shutil.copytree(head(labelled, "correspondence"), tmp_path / "head")
    text = (url / "head.json").read_text()
    (url / "head.json").write_text(text.replace(str(labelled), "/gone"))
    (tmp_path / "store").mkdir()
    text = (labelled / "store" / "manifest.json").read_text()
    (tmp_path / "store" / "manifest.json").write_text(text.replace('"embedded"', '"/gone/backbone"'))
    pictures = sorted(folder.iterdir())[:2]
    line: list[str | Path] = [url, *pictures, "--out", tmp_path / "out"]
    assert "the store that it was trained on cannot be read" in run(*line).stderr
    line += ["--store", tmp_path / "store"]
    assert "/gone/backbone" in run(*line).stderr
    done = run(*line, "--moved", f"/gone/backbone={copy_backbone(tmp_path / 'backbone')}")
    assert done.exit_code == 0, done.output
    assert sum(line.startswith("│") for line in done.stdout.splitlines()) == 16


def test_what_prompts_and_techniques_take_is_handed_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In batches of four, each picture with its own."""
    spec = make_spec()
    (tmp_path / "depth").write_bytes(b"a depth")
    given = []
    for number in range(5):
        (tmp_path / f"{number}").write_bytes(str(number).encode())
        texts = {"caption": f"caption {number}", "json:place": f"place {number}"}
        controls = {"depth.png": str(tmp_path / "depth")}
        given.append(Given(str(number), str(tmp_path / f"{number}"), (1, 1), texts, controls))
    calls = []

    def predict(trained: Any, extract: Any, images: list[bytes], **others: Any) -> list[str]:
        calls.append((images, others))
        return [f"of {image.decode()}" for image in images]

    monkeypatch.setattr(jobs.predict, "predict", predict)
    found: Any = list(
        jobs.predict._predictions(cast(Any, None), cast(Any, SimpleNamespace(spec=spec)), given)
    )
    assert found == [(one, f"of {one.key}") for one in given]
    (images, _), (last, others) = calls
    assert len(images) == 4 and last == [b"4"]
    assert others == {
        "captions": ["caption 4"],
        "json": {"place": ["place 4"]},
        "fields": {"depth.png": [b"a depth"]},
    }


@pytest.mark.usefixtures("no_backbone")
@pytest.mark.parametrize(
    ("task", "names", "options", "message"),
    [
        ("classification", ["none.jpg"], [], "no such file or folder"),
        ("classification", ["damaged.jpg"], [], "damaged.jpg: undecodable-image"),
        ("classification", ["a.png"], ["--split", "3"], "has no split 3; it has 1"),
        ("classification", ["a.png"], ["--points", "1,2"], "--points is for correspondence, and head"),
        (
            "classification",
            ["a.png"],
            ["--caption", "x"],
            "--caption has no effect: no prompt of the feature groups",
        ),
        ("classification", ["a.png"], ["--moved", "x"], "--moved has 'x'; give OLD=NEW"),
        ("classification", ["a.png"], ["--store", "/nowhere"], "no feature store at /nowhere"),
        (
            "classification",
            ["a.png"],
            ["--out", "."],
            "no images in a.png outside of ., where predictions are",
        ),
        ("correspondence", ["a.png"], [], "finds points of one picture in others, and there is 1 picture"),
        (
            "correspondence",
            ["a.png", "b.png"],
            ["--points", "1;2"],
            "--points has '1;2'; a point is X,Y in pixels",
        ),
        (
            "correspondence",
            ["a.png", "b.png"],
            ["--points", "1,1 64,49"],
            "--points 64,49 is not in the part of {folder}/a.png that the network sees; the picture is 64 x 48 pixels",
        ),
    ],
)
def test_errors_come_first(
    labelled: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    task: str,
    names: list[str],
    options: list[str],
    message: str,
) -> None:
    """A backbone takes a minute to load, and a wrong path should not wait for it; nothing is written either."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(shapes.members(16)["png"])
    (tmp_path / "damaged.jpg").write_bytes(b"no picture")
    done = run(head(labelled, task), *names, *options)
    assert done.exit_code == 2 and message.format(folder=tmp_path) in done.stderr, done.output
    assert not (tmp_path / "predictions").exists()


def test_a_folder_that_cannot_be_written_to(
    labelled: Path, folder: Path, tmp_path: Path, no_backbone: None
) -> None:
    (tmp_path / "file").touch()
    done = run(head(labelled, "classification"), folder, "--out", tmp_path / "file")
    assert done.exit_code == 1 and f"folder {tmp_path}/file: cannot write objects there" in done.stderr


def test_a_failed_batch_names_its_pictures(
    labelled: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The extractor counts within the batch that it is given."""

    def fails(*_: Any, **__: Any) -> None:
        raise ValueError("image 0: group 'plain' failed: float16-overflow")

    monkeypatch.setattr(jobs.predict, "predict", fails)
    picture = folder / f"{shapes.key_of(16)}.png"
    done = run(head(labelled, "classification"), picture, "--out", tmp_path)
    assert done.exit_code == 2 and f"of the pictures {picture}: image 0: group" in done.stderr
