"""The head job as users start it: from spec to weights and scores, through kills, signals and second thoughts."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from jobs import endings, train_head
from jobs.cli import app
from jobs.endings import DONE, FAILED, STOPPED
from pipeline.heads import drawing
from pipeline.heads.tasks.classification import ClassificationTask
from pipeline.storage import open_fs
from schemas.head import HeadSpec, Results
from tests.conftest import BucketUrl
from tests.labelled import IDS, MASKS, TASKS, dump, spec_of, write_shards
from tests.pipeline.heads.shown import pixels

CHANCE = {"label-scarce": 0.3, "segmentation": 0.3, "classification": 0.5, "correspondence": 0.04}
"""Of the main metric: all ground, one class always, any point of the image."""
SMALL = {"steps": 12, "validate_every": 4}
"""Two random splits of it are quick, and are what most tests here train."""
RANDOM = {"type": "random", "count": 2, "train": 12, "validation": 4}


def small(labelled: Path, out: Path, /, **changes: Any) -> HeadSpec:
    task = SMALL | changes.pop("task", {})
    return spec_of(labelled, out, "classification", **{"splits": RANDOM, **changes, "task": task})


def weights(spec: HeadSpec) -> list[bytes]:
    return [Path(spec.head, f"split-{split}", "head.safetensors").read_bytes() for split in range(2)]


def results(spec: HeadSpec) -> Results:
    return Results.model_validate_json(Path(spec.head, "results.json").read_bytes())


@pytest.fixture
def _no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they are of no account they need not take their time."""
    monkeypatch.setattr(drawing, "pictures", lambda *_: {})


@pytest.fixture(scope="module")
def undisturbed(labelled: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HeadSpec]:
    """A job that went through; not to be changed."""
    spec = small(labelled, tmp_path_factory.mktemp("undisturbed") / "head")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawing, "pictures", lambda *_: {})
        assert train_head.run(spec) == DONE
    yield spec


@pytest.fixture
def spec(labelled: Path, tmp_path: Path) -> HeadSpec:
    return small(labelled, tmp_path / "head")


@pytest.fixture
def copied(undisturbed: HeadSpec, tmp_path: Path) -> HeadSpec:
    """The spec of a copy of the finished job's folders."""
    for suffix in ("", "-work"):
        shutil.copytree(f"{undisturbed.head}{suffix}", tmp_path / f"head{suffix}")
    return undisturbed.model_copy(update={"head": str(tmp_path / "head")})


@pytest.mark.parametrize("task", TASKS)
def test_every_task(task: str, labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Beats chance on rows that it was not trained on; all files are there, and plots are pictures."""
    spec = spec_of(labelled, tmp_path / "head", task)
    assert train_head.run(spec) == DONE
    shown = capsys.readouterr().out
    found = results(spec)
    metric, (mean, deviation) = next(iter(found.metrics.items()))
    assert mean > 1.3 * CHANCE[task] and deviation == 0
    assert f"{metric} │ {100 * mean:.2f}" in " ".join(shown.split()) and shown.splitlines()[-1] == spec.head
    files = {path.name: path for path in Path(spec.head, "split-0").iterdir()}
    own = "pck.png" if task == "correspondence" else "confusion.png"
    plots = {"history.png", "weights.png", "examples.png", own}
    assert set(files) == {"head.safetensors", "result.json", *plots}
    for name in plots:
        assert min(pixels(files[name].read_bytes()).shape[:2]) > 60
    assert found.splits[0].rows["test"] == (24 if task == "correspondence" else 8)


def test_a_kill_changes_no_byte(spec: HeadSpec, undisturbed: HeadSpec, tmp_path: Path) -> None:
    """The same command goes on, and needs no backbone for it, nor Ray: a store is read by itself."""
    path = dump(spec, tmp_path / "spec.json")
    killed = f"""
import os, signal
from jobs import cli
from pipeline.heads.tasks.classification import ClassificationTask
loss, calls = ClassificationTask.loss, []
def kill(*arguments):
    calls.append(1)
    if len(calls) == {SMALL["steps"]} + 7:  # of the second split
        os.kill(os.getpid(), signal.SIGKILL)
    return loss(*arguments)
ClassificationTask.loss = kill
cli.main(["train-head", {path!r}])
"""
    env = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # bytes depend on it
    process = subprocess.run([sys.executable, "-c", killed], env=env, capture_output=True)
    assert process.returncode == -signal.SIGKILL
    assert Path(spec.head, "split-0", "result.json").exists()
    assert Path(spec.work_folder, "split-1", "checkpoint.safetensors").exists()
    assert not Path(spec.head, "split-1").exists() and not Path(spec.head, "results.json").exists()
    again = [sys.executable, "-X", "importtime", "-m", "jobs.train_head", path]
    process = subprocess.run(again, env=env, capture_output=True)
    assert process.returncode == DONE and "split-1: going on from step 4" in process.stdout.decode()
    assert weights(spec) == weights(undisturbed)
    imported = {line.rpartition("|")[2].strip() for line in process.stderr.decode().splitlines()}
    assert {"torch", "pipeline.heads.fit"} <= imported
    assert not {"diffusers", "transformers", "pipeline.backbone", "pipeline.families", "ray"} & imported


@pytest.mark.usefixtures("_no_plots")
@pytest.mark.parametrize("at", [5, SMALL["steps"], SMALL["steps"] + 1])
def test_a_signal_stops_after_a_step(
    at: int, spec: HeadSpec, undisturbed: HeadSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between looks, at the end of a split, and in the first step of another."""
    loss, calls = ClassificationTask.loss, []

    def and_stop(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(ClassificationTask, "loss", and_stop)
        assert train_head.run(spec) == STOPPED
    assert not Path(spec.head, "results.json").exists()
    assert train_head.run(spec) == DONE
    assert weights(spec) == weights(undisturbed)
    for one, other in zip(results(spec).splits, results(undisturbed).splits, strict=True):
        assert one.model_copy(update={"seconds": {}}) == other.model_copy(update={"seconds": {}})


def test_a_second_signal_stops_at_once(spec: HeadSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endings, "_ONE_SIGNAL_S", 0.0)

    def and_stop(*_: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("unreachable")

    monkeypatch.setattr(ClassificationTask, "loss", and_stop)
    assert train_head.run(spec) == STOPPED
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_loss_that_is_no_number_fails(
    spec: HeadSpec, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    nothing = torch.tensor(torch.nan, requires_grad=True)
    monkeypatch.setattr(ClassificationTask, "loss", lambda *_: (nothing * 1, {}))
    assert train_head.run(spec) == FAILED
    assert "lower learning rate" in caplog.text


def test_a_finished_head_is_left(
    undisturbed: HeadSpec, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_head, "_train", None)
    assert train_head.run(undisturbed) == DONE
    shown = capsys.readouterr().out
    assert f"nothing to do: all splits are at {undisturbed.head}" in shown and "accuracy" in shown


def test_another_head_is_refused(
    copied: HeadSpec, labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the difference, before it is trained; in the head's folder as in the work folder."""
    before = weights(copied)
    monkeypatch.setattr(drawing, "pictures", lambda *_: {})
    with pytest.raises(
        ValueError, match=r"holds another head .*\n  task\.steps: the folder has 12, the spec 13\n"
    ):
        train_head.run(small(labelled, Path(copied.head), task={"steps": 13}))
    with pytest.raises(ValueError, match=r"splits\.seed: the folder has 0, the spec 1"):
        train_head.run(small(labelled, Path(copied.head), splits=RANDOM | {"seed": 1}))
    write_shards(tmp_path / "other", lambda number, members: members | {"cls": b"0"})
    relabelled = {"root": str(tmp_path / "other"), "classes": IDS}
    with pytest.raises(ValueError, match="examples: the folder has"):
        train_head.run(small(labelled, Path(copied.head), labels=relabelled))
    assert weights(copied) == before
    shutil.rmtree(copied.head)
    with pytest.raises(ValueError, match=r"checkpoint\.safetensors was made with .*move it away"):
        train_head.run(small(labelled, Path(copied.head), task={"learning_rate": 0.5}))


@pytest.mark.usefixtures("_no_plots")
def test_a_lost_head_is_written_again(copied: HeadSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the work folder, without a step."""
    before = weights(copied)
    shutil.rmtree(copied.head)
    monkeypatch.setattr(ClassificationTask, "loss", None)
    assert train_head.run(copied) == DONE
    assert weights(copied) == before


def test_a_dry_run_writes_nothing(spec: HeadSpec, capsys: pytest.CaptureFixture[str]) -> None:
    assert train_head.run(spec, dry_run=True) == DONE
    shown = " ".join(capsys.readouterr().out.split())
    for expected in (
        "plain/up-level1-upsampler-out │ 96x1x1",
        "classification, 2 classes",
        "at most 12 steps, on cpu",
        "split-1 │ train 12, validation 4, test 8",
    ):
        assert expected in shown
    assert not Path(spec.head).exists() and not Path(spec.work_folder).exists()


@pytest.mark.usefixtures("_no_plots")
def test_rows_left_out_are_said(labelled: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_shards(
        tmp_path / "shards",
        lambda number, members: {k: v for k, v in members.items() if k != "cls" or number not in (3, 9)},
    )
    labels = {"root": str(root), "classes": IDS, "bad": "skip"}
    splits = RANDOM | {"count": 1}
    with caplog.at_level(logging.WARNING, "gatehouse"):
        assert train_head.run(small(labelled, tmp_path / "head", labels=labels, splits=splits)) == DONE
    assert "2 rows are left out: no-label" in caplog.text
    found = json.loads((tmp_path / "head" / "results.json").read_text())
    assert found["skipped"] == {"no-label": 2} and found["splits"][0]["rows"]["test"] == 6


def test_what_is_wrong_is_said_before_work(labelled: Path, tmp_path: Path) -> None:
    """And leaves no trace that would be in the way of the right spec."""
    out = tmp_path / "head"
    for changes, message in (
        ({"features": {"groups": ["plan"]}}, "nearest of 2: plain"),
        ({"store": str(tmp_path)}, "no feature store"),
        ({"labels": {"root": str(labelled / "shards")}}, "labels.classes is not given"),
        ({"labels": {"root": str(labelled / "shards"), "classes": 1}}, "class-out-of-range"),
        ({"splits": RANDOM | {"train": 40}}, "ask for fewer"),
    ):
        with pytest.raises(ValueError, match=message):
            train_head.run(small(labelled, out, **changes))
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        train_head.run(small(labelled, tmp_path / "file"))
    assert not out.exists() and not Path(f"{out}-work").exists()


@pytest.mark.usefixtures("_no_plots")
def test_paths_may_be_relative(
    labelled: Path, tmp_path: Path, undisturbed: HeadSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of pairs too."""
    monkeypatch.chdir(labelled)
    found = train_head.absolute(
        spec_of(
            Path(),
            Path("head"),
            "correspondence",
            labels={"root": "shards"},
            store="store",
            task={"pairs": "shards/pairs-*.jsonl"},
        )
    )
    assert (found.head, found.store) == (f"{labelled}/head", f"{labelled}/store")
    assert (found.work, found.labels.root) == (f"{labelled}/head-work", f"{labelled}/shards")
    assert found.task.type == "correspondence" and found.task.pairs == f"{labelled}/shards/pairs-*.jsonl"
    monkeypatch.chdir(Path(undisturbed.head).parent)
    assert train_head.run(undisturbed.model_copy(update={"head": "head"})) == DONE


@pytest.mark.s3
@pytest.mark.usefixtures("_no_plots")
def test_the_same_on_s3(
    labelled: Path, undisturbed: HeadSpec, s3: BucketUrl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Store, shards and head in the bucket, checkpoints in a local folder; cut off on the way and gone on."""
    bucket = s3()
    fs, root = open_fs(bucket)
    for name in ("store", "shards"):
        fs.put(f"{labelled / name}/", f"{root}/{name}/", recursive=True)
    there = small(
        labelled,
        Path("unused"),
        head=f"{bucket}/head",
        work=str(tmp_path / "work"),
        store=f"{bucket}/store",
        labels={"root": f"{bucket}/shards", "classes": IDS},
    )
    loss, calls = ClassificationTask.loss, []

    def cut_off(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return loss(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(ClassificationTask, "loss", cut_off)
        assert train_head.run(there) == STOPPED
    assert train_head.run(there) == DONE
    for split, expected in enumerate(weights(undisturbed)):
        assert fs.cat_file(f"{root}/head/split-{split}/head.safetensors") == expected
    assert fs.cat_file(f"{root}/head/results.json") and not list(tmp_path.glob("head*"))
    assert train_head.run(there) == DONE
    masks = {"root": f"{bucket}/shards", "classes": MASKS}
    with pytest.raises(ValueError, match="holds another head"):
        train_head.run(there.model_copy(update={"labels": there.labels.model_copy(update=masks)}))


def test_the_command_hands_over(spec: HeadSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it was given; and a wrong spec is exit code 2."""
    given: list[Any] = []
    job: Any = ModuleType("jobs.train_head")

    def run(*arguments: Any, **options: Any) -> int:
        given.append((*arguments, options))
        return 5

    job.run = run
    monkeypatch.setitem(sys.modules, "jobs.train_head", job)
    path = dump(spec, tmp_path / "spec.json")
    result = CliRunner().invoke(app, ["train-head", path, "--set", "task.steps=9", "--dry-run"])
    assert result.exit_code == 5
    expected = spec.model_copy(update={"task": spec.task.model_copy(update={"steps": 9})})
    assert given == [(expected, {"dry_run": True})]
    result = CliRunner().invoke(app, ["train-head", path, "--set", "task.steps=0"])
    assert result.exit_code == 2 and "task" in result.stderr
