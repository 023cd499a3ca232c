"""Experiments as users start them, on small data sets in the published layouts and the embedded backbone."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from jobs import extract, gate, reproduce, train_head, train_lora
from jobs.cli import app
from jobs.endings import DONE, SET_ASIDE, STOPPED
from pipeline import FeatureStore
from pipeline.gate import candidates
from pipeline.heads.folder import HeadFolder
from pipeline.reproduce.experiments import EXPERIMENTS
from pipeline.reproduce.options import Options
from pipeline.reproduce.table import Table
from schemas.gate import SELECTION, GateSpec
from schemas.head import HeadSpec
from schemas.specfile import load
from tests import backbones, public_sets, selections

BACKBONE = ["--backbone", "embedded", "--controlnet", "embedded/controlnet-canny", "--dtype", "float32"]
SIZES = {"cityscapes": "64x128"}
OPTIONS = Options(
    name="horse21",
    backbone="embedded",
    controlnet="embedded/controlnet-canny",
    dtype="float32",
    image_size=[64, 64],
    quick=True,
)
"""Those of `command`, for Horse-21."""


def command(name: str, folder: Path, *more: str) -> Result:
    """The data set is in `folder`/data."""
    line = [
        "reproduce",
        name,
        "--data",
        str(folder / "data"),
        "--work",
        str(folder / "work"),
        "--quick",
        "--serial",
    ]
    return CliRunner().invoke(app, [*line, "--image-size", SIZES.get(name, "64"), *BACKBONE, *more])


def table_of(folder: Path) -> Table:
    return Table.model_validate_json((folder / "work" / "table.json").read_bytes())


def files(work: Path) -> dict[str, bytes]:
    """All but the table."""
    found = (path for path in work.rglob("*") if path.is_file() and path.stem != "table")
    return {str(path.relative_to(work)): path.read_bytes() for path in found}


@pytest.fixture(scope="module")
def horses(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run; to be left as it is, but for what a test puts back."""
    folder = tmp_path_factory.mktemp("horses")
    public_sets.write_horse21(folder / "data", train=8, test=8)
    lost = folder / "work" / "shards.part" / "train-000000.tar"
    lost.parent.mkdir(parents=True)
    lost.write_bytes(b"what a killed run left")
    done = command("horse21", folder)
    assert done.exit_code == DONE, done.output
    return folder


@pytest.mark.slow
def test_label_scarce_segmentation(horses: Path) -> None:
    table = table_of(horses)
    (line,) = table.lines
    assert line.paper_baseline and line.paper_gate
    assert (line.metric, line.paper_baseline.mean, line.paper_gate.mean) == ("mIoU", 65.0, 67.2)
    assert line.baseline.mean > 30 and line.gate.mean > 30  # of classes that are colours
    assert line.baseline.sd is not None and len(table.heads["gate"].splits) == 2
    assert table.quick and (horses / "work" / "table.md").read_text().startswith(f"# {table.title}\n")
    # All features are of all images, and the head with GATE has weights for each of four groups.
    store = FeatureStore(str(horses / "work" / "features"))
    assert store.index.num_rows == len(store.rows()) == 16
    weights = table.heads["gate"].splits[0].weights
    assert weights and [len(one) for one in weights[0]] == [4, 4]
    assert table.heads["baseline"].splits[0].weights is None


@pytest.mark.slow
def test_a_finished_experiment_is_left_alone(horses: Path) -> None:
    """And made again where a file of it is lost: the table."""
    work = horses / "work"
    before = files(work)
    table = (work / "table.md").read_text()
    (work / "table.md").unlink()
    done = command("horse21", horses)
    assert done.exit_code == DONE and done.output.count("nothing to do") == 5
    assert files(work) == before
    assert (work / "table.md").read_text() == table and table in done.output


@pytest.mark.slow
def test_other_options_need_another_folder(horses: Path) -> None:
    done = command("horse21", horses, "--gate")
    assert done.exit_code == 2
    assert "gate: the folder has False, this command True" in done.stderr and "another --work" in done.stderr


@pytest.mark.slow
def test_a_spec_that_the_user_changed(horses: Path) -> None:
    """Is used as it is, and told in the table."""
    path = horses / "work" / "specs" / "head-gate.yaml"
    before = path.read_text()
    path.write_text(before.replace("workers: 0", "workers: 1"))
    done = command("horse21", horses)
    path.write_text(before)
    assert done.exit_code == DONE
    assert table_of(horses).run[-1] == "specs/head-gate.yaml is not as this release makes it."


@pytest.mark.slow
def test_correspondence(tmp_path: Path) -> None:
    public_sets.write_spair71k(tmp_path / "data")
    done = command("spair71k", tmp_path)
    assert done.exit_code == DONE, done.output
    table = table_of(tmp_path)
    assert len(table.lines) == 8
    assert all(0 <= cell.mean <= 100 for line in table.lines for cell in (line.baseline, line.gate))
    # Nearest neighbours of one group are not trained; those of six groups, and convolutions, are.
    steps = {name: one.splits[0].steps for name, one in table.heads.items()}
    assert steps == {"baseline-nn": 0, "gate-nn": 20, "baseline-conv": 20, "gate-conv": 20}
    spec = load(str(tmp_path / "work" / "specs" / "head-gate-conv.yaml"), model=HeadSpec)
    assert len(spec.features.groups or []) == 6 and spec.features.attention == ["attention/attn"]
    shards = set(FeatureStore(str(tmp_path / "work" / "features")).index["shard"].to_pylist())
    assert shards == {"trn-000000.tar", "test-000000.tar"}


@pytest.mark.slow
def test_segmentation_with_groups_that_gate_selects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of GATE's job, which has tests of its own, only the selection is taken: its first two candidates."""
    public_sets.write_ade20k(tmp_path / "data")

    def select(spec: GateSpec, *, serial: bool) -> int:
        groups = [candidates.group(spec, one) for one in (spec.candidates or [])[:2]]
        selections.write(Path(spec.out) / SELECTION, selections.selection(*groups))
        return DONE

    monkeypatch.setattr(gate, "run", select)
    done = command("ade20k", tmp_path, "--gate")
    assert done.exit_code == DONE, done.output
    assert [line.metric for line in table_of(tmp_path).lines] == ["mIoU", "aAcc", "mAcc"]
    head = HeadFolder(str(tmp_path / "work" / "heads" / "gate")).manifest()
    assert head and head.groups == ["prompt", "controlnet-lora-a"]
    assert "GATE selected (--gate): prompt, controlnet-lora-a." in done.output


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_dry_run_tells_all_and_writes_nothing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    public_sets.WRITERS[name](tmp_path / "data")
    done = command(name, tmp_path, "--dry-run")
    assert done.exit_code == DONE, done.output
    for told in (
        "train-lora",
        "30 images, 10 steps of 4",
        "passes and",
        "head-gate",
        EXPERIMENTS[name].title,
    ):
        assert told in done.output
    assert not (tmp_path / "work").exists()


def without_work(monkeypatch: pytest.MonkeyPatch, **codes: int) -> list[str]:
    """Jobs that do nothing and end with a code; the names of those that were called."""
    called: list[str] = []
    for job in (train_lora, extract, train_head):
        name = job.__name__.rpartition(".")[2]

        def run(spec: Any, name: str = name, **_: Any) -> int:
            called.append(name)
            return codes.get(name, DONE)

        monkeypatch.setattr(job, "run", run)
    return called


@pytest.mark.parametrize(
    ("code", "cure"), [(STOPPED, "the same command goes on from here"), (SET_ASIDE, "--retry-failed")]
)
def test_a_job_that_does_not_end_well_ends_it_all(
    code: int, cure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Heads must not learn from a store that lacks rows; the same command goes on where it ended."""
    public_sets.write_horse21(tmp_path / "data")
    called = without_work(monkeypatch, extract=code)
    with caplog.at_level(logging.ERROR):
        assert reproduce.run(OPTIONS, str(tmp_path / "data"), str(tmp_path / "work")) == code
    assert called == ["train_lora", "extract"]
    assert f"extract.yaml` ended with code {code}" in caplog.text and cure in caplog.text


def test_what_would_end_the_extraction_is_found_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not after the hours that training LoRAs takes."""
    called = without_work(monkeypatch)
    without = OPTIONS.model_copy(update={"controlnet": "nowhere"})
    with pytest.raises(ValueError, match="controlnet 'nowhere': no such folder"):
        reproduce.run(without, str(tmp_path / "data"), str(tmp_path / "work"))
    odd = OPTIONS.model_copy(update={"backbone": str(backbones.tiny("pixart-sigma"))})
    with pytest.raises(ValueError, match=r"groups\.0\.taps.*: the set .legacy. is not defined"):
        reproduce.run(odd, str(tmp_path / "data"), str(tmp_path / "work"))
    assert not called and not (tmp_path / "work").exists()


def test_a_folder_that_is_no_such_data_set(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    done = command("horse21", tmp_path)
    assert done.exit_code == 2 and "not the folder of the data set horse_21" in done.stderr
    assert not (tmp_path / "work" / "shards").exists()


def test_options_are_checked(tmp_path: Path) -> None:
    done = command("cow21", tmp_path)
    assert done.exit_code == 2 and "experiment: found 'cow21'" in done.stderr
