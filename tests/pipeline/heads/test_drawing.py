"""Which plots a split has not; what is on them is tested where they are drawn, and those of every task with the job."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from pipeline.heads.drawing import pictures
from pipeline.heads.fit import evaluate, fit
from pipeline.heads.problem import Problem, open_problem
from tests.labelled import GROUPS, MASKS, spec_of, write_shards


def problem_of(labelled: Path, task: str, /, **changes: Any) -> Problem:
    few = {"steps": 2, "validate_every": 1} | changes.pop("task", {})
    return open_problem(spec_of(labelled, Path("unused"), task, task=few, **changes))


def drawn(problem: Problem, work: Path) -> dict[str, bytes]:
    split = problem.splits[0]
    fitted = fit(problem, split, work, "cpu")
    found = evaluate(problem, split.test, fitted.network, "cpu")
    return pictures(problem, split, fitted.network, found, work, "cpu")


def test_what_there_is_nothing_of_is_left_out(labelled: Path, tmp_path: Path) -> None:
    """No steps, no assigners."""
    problem = problem_of(labelled, "correspondence", task={"head": "nn"}, features={"groups": GROUPS[:1]})
    assert set(drawn(problem, tmp_path)) == {"pck.png", "examples.png"}


@pytest.mark.parametrize("left", [{"seg.png"}, {"seg.png", "png"}])
def test_labels_without_the_pictures(
    left: set[str], labelled: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They may lie apart from them, or beside others: a head is not lost for want of its examples."""
    root = write_shards(
        tmp_path / "labels",
        lambda number, members: {
            name: data + b" " * (name == "png") for name, data in members.items() if name in left
        },
    )
    problem = problem_of(labelled, "segmentation", labels={"root": str(root), "classes": MASKS})
    with caplog.at_level(logging.WARNING, "gatehouse"):
        found = drawn(problem, tmp_path / "work")
    assert set(found) == {"history.png", "confusion.png", "weights.png"}
    assert "no pictures of examples: changed: the image is not the one" in caplog.text
