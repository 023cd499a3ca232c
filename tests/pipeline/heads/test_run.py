"""All splits of a head: each is tested and written once, and what is written last says that the rest is there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from pipeline.heads import drawing
from pipeline.heads import fit as fitting
from pipeline.heads.folder import HeadFolder, split_name
from pipeline.heads.problem import Problem, open_problem
from pipeline.heads.run import OnStep, summary, train_splits
from pipeline.heads.splits import Split
from schemas.head import RESULT, RESULTS, WEIGHTS, Results, SplitResult
from tests.labelled import IDS, spec_of

STEPS = 4


@pytest.fixture(scope="module")
def problem(labelled: Path) -> Problem:
    """Two random splits of a head that takes no time."""
    splits = {"type": "random", "train": 12, "validation": 4, "count": 2}
    task = {"steps": STEPS, "validate_every": 2}
    return open_problem(spec_of(labelled, Path("unused"), "classification", task=task, splits=splits))


@pytest.fixture(autouse=True)
def _no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "pictures", lambda *_: {"some.png": b"a picture"})


def run(
    problem: Problem, folder: Path, on_step: OnStep = lambda split, step, logged: False
) -> Results | None:
    return train_splits(problem, HeadFolder(str(folder / "head")), folder / "work", "cpu", on_step=on_step)


def test_a_folder_a_split(problem: Problem, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []

    def tell(split: Split, step: int, logged: dict[str, float]) -> bool:
        assert logged["loss"] > 0
        told.append((split.number, step))
        return False

    results = run(problem, tmp_path, tell)
    assert told == [(split, step) for split in (0, 1) for step in range(1, STEPS + 1)]
    assert results is not None and results == HeadFolder(str(tmp_path / "head")).results()
    assert (results.head, results.task, results.skipped) == (problem.digest, "classification", {})
    for number, result in enumerate(results.splits):
        files = {path.name for path in (tmp_path / "head" / split_name(number)).iterdir()}
        assert files == {WEIGHTS, "some.png", RESULT}
        with safe_open(tmp_path / "head" / split_name(number) / WEIGHTS, "pt") as file:
            assert file.metadata() == {"gatehouse": problem.digest}
            assert len(file.get_tensor("classifier.linear.weight")) == len(IDS)
        assert result.split == number and result.steps == STEPS
        assert result.rows == {"train": 12, "validation": 4, "test": 8}
        assert set(result.metrics) == {"accuracy", "mean class accuracy"} and set(result.by_class) <= set(IDS)
        assert result.weights is not None and sum(result.weights[0][0]) == pytest.approx(1)
        assert set(result.seconds) == {"train", "test"}


def test_a_stop_ends_between_splits_too(
    problem: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the first split has is not made again."""
    assert run(problem, tmp_path, lambda split, step, _: split.number == 1 and step == 2) is None
    head = HeadFolder(str(tmp_path / "head"))
    first = head.split(0)
    assert first is not None and head.split(1) is None and head.results() is None
    trained: list[int] = []
    fit = fitting.fit

    def spied(problem: Problem, split: Split, *rest: Any, **options: Any) -> Any:
        trained.append(split.number)
        return fit(problem, split, *rest, **options)

    monkeypatch.setattr(fitting, "fit", spied)
    results = run(problem, tmp_path)
    assert trained == [1] and results is not None and results.splits[0] == first


def test_the_result_is_written_last(
    problem: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A split that was cut off while it was written is written again, whole."""
    written: list[str] = []
    write = HeadFolder.write

    def cut_off(self: HeadFolder, files: Mapping[str, bytes]) -> None:
        written.extend(files)
        write(self, dict(list(files.items())[:-1]))
        raise OSError("the disk is full")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="the disk is full"):
        patch.setattr(HeadFolder, "write", cut_off)
        run(problem, tmp_path)
    assert written == [f"split-0/{name}" for name in (WEIGHTS, "some.png", RESULT)]
    assert HeadFolder(str(tmp_path / "head")).split(0) is None
    assert run(problem, tmp_path) is not None


def test_lost_results_are_summed_up_again(
    problem: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without any training."""
    before = run(problem, tmp_path)
    (tmp_path / "head" / RESULTS).unlink()
    monkeypatch.setattr(fitting, "fit", None)
    assert run(problem, tmp_path) == before


def test_mean_and_standard_deviation(problem: Problem) -> None:
    """The sample's, as papers give it; nothing is spread about one split."""

    def result(number: int, value: float) -> SplitResult:
        metrics = {"mIoU": value, "aAcc": 1.0}
        return SplitResult(split=number, metrics=metrics, rows={}, steps=1, best_step=1, seconds={})

    found = summary(problem, [result(0, 0.2), result(1, 0.4), result(2, 0.6)])
    assert found.metrics == {"mIoU": [pytest.approx(0.4), pytest.approx(0.2)], "aAcc": [1.0, 0.0]}
    assert list(found.metrics) == ["mIoU", "aAcc"]
    assert summary(problem, [result(0, 0.2)]).metrics["mIoU"] == [0.2, 0.0]
    assert json.loads(found.to_bytes())["splits"][1]["metrics"]["mIoU"] == 0.4
