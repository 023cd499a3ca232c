"""All splits of a head job, one after the other: train, test, draw, write; what is done already is left."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pipeline.heads import drawing, fit
from pipeline.heads.folder import HeadFolder, split_name
from pipeline.heads.problem import Problem
from pipeline.heads.splits import Split
from pipeline.heads.tasks.base import Evaluation
from pipeline.heads.team import Team
from schemas.head import RESULT, RESULTS, WEIGHTS, Results, SplitResult

OnStep = Callable[[Split, int, dict[str, float]], bool]


def train_splits(
    problem: Problem,
    folder: HeadFolder,
    work: Path,
    device: str,
    *,
    team: Team | None = None,
    on_step: OnStep = lambda split, step, logged: False,
    plots: bool = True,
) -> Results | None:
    """Train and test every split that has no result yet.

    Args:
        problem: what is trained on what.
        folder: this head's.
        work: local folder for checkpoints and logs.
        device: cpu or cuda.
        team: the processes that train together.
        on_step: called with the split, the steps done and what was logged; stops where it returns True.
        plots: draw them; they take longer than a small head.

    Returns:
        Results over all splits; None where it was told to stop.
    """
    team = team or Team()
    for split in problem.splits:
        done = folder.split(split.number) is not None
        team.wait()  # all have looked, before the first one goes on and writes it
        if not done and not _one(problem, split, folder, work, device, team, on_step, plots):
            return None
    if team.writes:
        found = [folder.split(split.number) for split in problem.splits]
        results = summary(problem, [one for one in found if one is not None])
        folder.write({RESULTS: results.to_bytes()})
    team.wait()
    return folder.results()


def summary(problem: Problem, splits: list[SplitResult]) -> Results:
    """Mean and standard deviation over splits."""
    metrics = {
        name: [float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0]
        for name in splits[0].metrics
        for values in [[one.metrics[name] for one in splits]]
    }
    return Results(
        head=problem.digest,
        task=problem.spec.task.type,
        metrics=metrics,
        skipped=dict(problem.examples.skipped),
        splits=splits,
    )


def _one(
    problem: Problem,
    split: Split,
    folder: HeadFolder,
    work: Path,
    device: str,
    team: Team,
    on_step: OnStep,
    plots: bool,
) -> bool:
    """Whether the split's training came to its end."""
    here = work / split_name(split.number)
    fitted = fit.fit(
        problem,
        split,
        here,
        device,
        team=team,
        on_step=lambda step, logged: on_step(split, step, logged),
    )
    if not fitted.finished:
        return False
    if team.writes:
        trained = time.monotonic()
        evaluation = fit.evaluate(problem, split.test, fitted.network, device)
        seconds = {"train": fitted.seconds, "test": time.monotonic() - trained}
        result = _result(split, fitted, evaluation, seconds)
        pictures = drawing.pictures(problem, split, fitted.network, evaluation, here, device) if plots else {}
        files = {
            WEIGHTS: fit.weights_file(fitted.network, problem.digest),
            **pictures,
            RESULT: result.to_bytes(),
        }
        folder.write({f"{split_name(split.number)}/{name}": data for name, data in files.items()})
    team.wait()
    return True


def _result(
    split: Split, fitted: fit.Fitted, evaluation: Evaluation, seconds: dict[str, float]
) -> SplitResult:
    return SplitResult(
        split=split.number,
        metrics=evaluation.metrics,
        by_class=evaluation.by_class,
        weights=None if evaluation.weights is None else evaluation.weights.tolist(),
        rows=split.sizes,
        steps=fitted.steps,
        best_step=fitted.best_step,
        seconds={name: round(value, 2) for name, value in seconds.items()},
    )
