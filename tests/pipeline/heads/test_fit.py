"""One head on one split: whatever stops it, the same command ends at the same bytes; and the best look's are kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load

from pipeline.heads import fit as module
from pipeline.heads.fit import BEST, VALIDATION, Fitted, OnStep, evaluate, fit, weights_file
from pipeline.heads.problem import Problem, open_problem
from pipeline.heads.tasks.base import Evaluation
from pipeline.heads.tasks.label_scarce import LabelScarceTask
from pipeline.heads.team import Team
from pipeline.training.loop import CHECKPOINT, LOG
from tests.labelled import GROUPS, spec_of

STEPS, EVERY = 10, 4
"""Looks are at 4, 8 and 10."""
TASK = {"steps": STEPS, "validate_every": EVERY, "members": 2, "pixels": 16}


class Killed(BaseException):
    """Nothing catches it, as nothing catches a kill."""


def problem_of(labelled: Path, task: str = "label-scarce", /, **changes: Any) -> Problem:
    if task == "label-scarce":
        changes["task"] = TASK | changes.get("task", {})
    return open_problem(spec_of(labelled, Path("unused"), task, **changes))


@pytest.fixture(scope="module")
def problem(labelled: Path) -> Problem:
    return problem_of(labelled)


def train(problem: Problem, folder: Path, on_step: OnStep = lambda step, logged: False) -> Fitted:
    return fit(problem, problem.splits[0], folder, "cpu", on_step=on_step)


def weights(fitted: Fitted) -> bytes:
    return weights_file(fitted.network, "")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def undisturbed(problem: Problem, tmp_path_factory: pytest.TempPathFactory) -> tuple[Fitted, Path]:
    """A training that went through, and its folder; not to be changed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    return train(problem, folder), folder


@pytest.fixture
def values(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the looks at validation rows find, one after the other, then 0."""
    coming: list[float] = []
    looks: Iterator[float] = iter(coming)
    monkeypatch.setattr(
        LabelScarceTask, "evaluate", lambda *_: Evaluation({"mIoU": next(looks, 0.0), "other": 1.0})
    )
    return coming


def test_it_learns(problem: Problem, undisturbed: tuple[Fitted, Path]) -> None:
    fitted, folder = undisturbed
    assert fitted.finished and fitted.steps == STEPS
    log = lines(folder / LOG)
    assert [line["step"] for line in log] == list(range(1, STEPS + 1))
    assert sum(line["loss"] for line in log[-3:]) < sum(line["loss"] for line in log[:3])
    looks = lines(folder / VALIDATION)
    assert [look["step"] for look in looks] == [4, 8, 10]
    assert fitted.best_step == max(looks, key=lambda look: (look["value"], -look["step"]))["step"]
    found = evaluate(problem, problem.splits[0].validation, fitted.network, "cpu")
    assert found.metrics["mIoU"] == max(look["value"] for look in looks)


def test_features_are_standardised_by_training_rows(
    problem: Problem, undisturbed: tuple[Fitted, Path]
) -> None:
    split, front = problem.splits[0], undisturbed[0].network.front
    rows = problem.examples.served.subset(split.train.tolist())
    name = problem.choice.names[0]
    maps = torch.stack([item[name] for item in rows.__getitems__(range(len(split.train)))]).double()
    stored = undisturbed[0].network.state_dict()[f"front.standardise.{name}.mean"]
    assert torch.allclose(stored[:, 0, 0].double(), maps.mean((0, 2, 3)), atol=1e-4)
    assert front.channels


@pytest.mark.parametrize("stop_at", [1, 4, 7, 9])
def test_stopped_and_gone_on(
    problem: Problem, undisturbed: tuple[Fitted, Path], tmp_path: Path, stop_at: int
) -> None:
    """At a look as between two: nothing of it is seen in the end."""
    stopped = train(problem, tmp_path, lambda step, _: step == stop_at)
    assert not stopped.finished and stopped.steps == stop_at
    went_on = train(problem, tmp_path)
    assert went_on.finished and weights(went_on) == weights(undisturbed[0])
    assert went_on.best_step == undisturbed[0].best_step
    assert lines(tmp_path / VALIDATION) == lines(undisturbed[1] / VALIDATION)
    assert [line["step"] for line in lines(tmp_path / LOG)] == list(range(1, STEPS + 1))


@pytest.mark.parametrize("kill_at", [2, 6, 8])
def test_killed_and_gone_on(
    problem: Problem, undisturbed: tuple[Fitted, Path], tmp_path: Path, kill_at: int
) -> None:
    """Before the first checkpoint; between two; and behind a look whose checkpoint was not written."""

    def kill(step: int, _: dict[str, float]) -> bool:
        if step == kill_at:
            raise Killed
        return False

    with pytest.raises(Killed):
        train(problem, tmp_path, kill)
    with (tmp_path / VALIDATION).open("a") as file:
        file.write('{"step": 99, "val')  # cut off
    went_on = train(problem, tmp_path)
    assert weights(went_on) == weights(undisturbed[0])
    assert lines(tmp_path / VALIDATION) == lines(undisturbed[1] / VALIDATION)


def test_the_end_is_not_trained_again(
    problem: Problem, undisturbed: tuple[Fitted, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while it was tested, a split needs its best weights and no step."""
    monkeypatch.setattr(LabelScarceTask, "loss", None)
    again = train(problem, undisturbed[1])
    assert again.finished and weights(again) == weights(undisturbed[0])
    assert (again.steps, again.best_step) == (undisturbed[0].steps, undisturbed[0].best_step)


def test_the_best_looks_weights_are_the_result(labelled: Path, tmp_path: Path, values: list[float]) -> None:
    """By the first metric, and the earlier look of two that are equal."""
    values += [0.3, 0.6, 0.6, 0.2, 0.1]
    problem = problem_of(labelled, task={"validate_every": 2})
    networks: list[Any] = []
    seen: dict[int, bytes] = {}
    network = module._network

    def spied(*given: Any) -> Any:
        networks.append(network(*given))
        return networks[0]

    def keep(step: int, _: dict[str, float]) -> bool:
        seen[step] = weights_file(networks[0], "")
        return False

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_network", spied)
        fitted = train(problem, tmp_path, keep)
    assert (fitted.steps, fitted.best_step) == (STEPS, 4)
    assert weights(fitted) == seen[4] != seen[STEPS]
    assert [path.name for path in tmp_path.glob(BEST.format("*"))] == [BEST.format(4)]
    assert load((tmp_path / BEST.format(4)).read_bytes()).keys() == fitted.network.state_dict().keys()


@pytest.mark.parametrize(("patience", "steps"), [(1, 6), (2, 10), (5, 10)])
def test_patience(labelled: Path, tmp_path: Path, values: list[float], patience: int, steps: int) -> None:
    """So many looks without a better one; and what has ended early is not gone on with."""
    values += [0.3, 0.5, 0.5, 0.6, 0.2]
    problem = problem_of(labelled, task={"validate_every": 2, "patience": patience})
    fitted = train(problem, tmp_path)
    assert fitted.finished and fitted.steps == steps
    assert fitted.best_step == (4 if patience == 1 else 8)
    again = train(problem, tmp_path)
    assert again.finished and again.steps == steps and weights(again) == weights(fitted)


def test_stopped_before_the_end_of_patience(labelled: Path, tmp_path: Path, values: list[float]) -> None:
    """Looks before the stop count behind it."""
    problem = problem_of(labelled, task={"validate_every": 2, "patience": 2})
    values += [0.5, 0.4, 0.3]
    stopped = train(problem, tmp_path, lambda step, _: step == 5)
    assert not stopped.finished
    went_on = train(problem, tmp_path)
    assert went_on.finished and (went_on.steps, went_on.best_step) == (6, 2)


def test_without_validation_rows_the_last_weights_are_the_result(labelled: Path, tmp_path: Path) -> None:
    problem = problem_of(labelled, splits={"type": "shards"})
    fitted = train(problem, tmp_path)
    assert (fitted.steps, fitted.best_step) == (STEPS, STEPS)
    assert not (tmp_path / VALIDATION).exists() and not (tmp_path / BEST).exists()


@pytest.mark.parametrize("rows", [3, 7])
def test_rows_that_make_no_whole_batches(labelled: Path, tmp_path: Path, rows: int) -> None:
    """Fewer than a batch are one; those that are left over wait for another epoch, in which they may come first."""
    problem = problem_of(labelled, splits={"type": "random", "train": rows, "count": 1})
    assert train(problem, tmp_path).steps == STEPS


def test_splits_begin_differently(labelled: Path) -> None:
    """Each with the same first weights every time; torch's own generator is left alone."""
    problem = problem_of(labelled, splits={"type": "random", "train": 8, "count": 2})
    state = torch.random.get_rng_state()
    first, same, second = (
        dict(module._network(problem, problem.splits[number]).named_parameters()) for number in (0, 0, 1)
    )
    assert all(torch.equal(first[name], same[name]) for name in first)
    name = "classifiers.weights.0"
    assert not torch.equal(first[name], second[name])
    assert torch.equal(torch.random.get_rng_state(), state)


def test_nothing_to_train(labelled: Path, tmp_path: Path) -> None:
    """Nearest neighbours among the features of one group."""
    problem = problem_of(labelled, "correspondence", task={"head": "nn"}, features={"groups": GROUPS[:1]})
    fitted = train(problem, tmp_path)
    assert fitted.finished and (fitted.steps, fitted.best_step) == (0, 0)
    found = evaluate(problem, problem.splits[0].test, fitted.network, "cpu")
    assert found.metrics["PCK@0.1 img"] > 0.3  # a random point is right in one of 30 cases


def test_a_loss_that_is_no_number(problem: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = LabelScarceTask.loss
    monkeypatch.setattr(LabelScarceTask, "loss", lambda *arguments: (loss(*arguments)[0] * float("nan"), {}))
    with pytest.raises(
        FloatingPointError, match=r"label-scarce: the loss of step 0 is nan; .*lower learning rate"
    ):
        train(problem, tmp_path)


def test_a_checkpoint_of_another_head(problem: Problem, labelled: Path, tmp_path: Path) -> None:
    train(problem, tmp_path, lambda step, _: True)
    with pytest.raises(ValueError, match=rf"{CHECKPOINT} was made with .*move it away to begin anew"):
        train(problem_of(labelled, task={"weight_decay": 0.5}), tmp_path)


def test_several_processes_share_what_one_has(problem: Problem) -> None:
    """Each rank's part of a step, side by side, is the step of one process: rows, and pixels drawn at random."""

    def steps(rank: int, ranks: int, begin: int) -> list[dict[str, Any]]:
        team, split = Team(rank, ranks), problem.splits[0]
        loader = module._training_loader(problem, split, team)
        stage = module._Stage(problem, module._network(problem, split), loader, "cpu", team)
        stage.begin(begin)
        return [dict(stage.draw(torch.Generator().manual_seed(step))) for step in range(5)]

    for begin in (0, 4):
        alone = steps(0, 1, begin)
        together = zip(*(steps(rank, 4, begin) for rank in range(4)), strict=True)
        for whole, shares in zip(alone, together, strict=True):
            for name, value in whole.items():
                assert torch.equal(torch.cat([share[name] for share in shares]), value)


def test_processes_that_read_ahead_change_nothing(
    labelled: Path, undisturbed: tuple[Fitted, Path], tmp_path: Path
) -> None:
    problem = problem_of(labelled, loading={"workers": 1, "cache_bytes": 0})
    assert weights(train(problem, tmp_path)) == weights(undisturbed[0])
