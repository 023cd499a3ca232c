"""The head job: stored features and labels of their samples -> a small network, and what it is worth on other rows.

`gatehouse train-head SPEC.yaml` and `python -m jobs.train_head SPEC.yaml` are the same. The backbone is never loaded.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jobs.beginnings import log_to_console
from jobs.endings import DONE, FAILED, STOPPED
from jobs.training import TrainingProgress, stop_after_step
from pipeline import device as devices
from pipeline import storage
from pipeline.heads.folder import HeadFolder, make_manifest, split_name
from pipeline.heads.follow import following
from pipeline.heads.problem import Problem, open_problem
from pipeline.heads.run import train_splits
from pipeline.heads.splits import Split
from pipeline.schedule import JobFailed
from schemas.head import Correspondence, HeadSpec, Results

logger = logging.getLogger("gatehouse")


def run(spec: HeadSpec, *, dry_run: bool = False) -> int:
    """Run the job, and return its exit code.

    Args:
        spec: checked.
        dry_run: print what would be trained on what; write nothing.

    Raises:
        ValueError: whatever of spec, store or labels makes the job impossible.
    """
    console = Console()
    log_to_console()
    spec = absolute(spec)
    device = devices.choose(spec.device, "device") if spec.processes == 1 else spec.device
    problem = open_problem(spec)
    folder, manifest = HeadFolder(spec.head), make_manifest(problem)
    folder.check_same(manifest)
    problem.task.network()  # what does not fit together is refused before the folder is claimed
    _warn_of_skipped(problem)
    if dry_run:
        _show_plan(console, problem, device)
        return DONE
    if (results := folder.results()) is not None:
        console.print(f"nothing to do: all splits are at {spec.head}", soft_wrap=True)
        show(console, spec, results)
        return DONE
    storage.check_writable(spec.head, "head")
    folder.claim(manifest)
    try:
        results = _train(console, problem, folder, device)
    except KeyboardInterrupt:
        results = None
    except (FloatingPointError, JobFailed) as error:
        logger.error("%s", error)
        return FAILED
    if results is None:
        logger.error("stopped; the same command goes on from here")
        return STOPPED
    show(console, spec, results)
    return DONE


def absolute(spec: HeadSpec) -> HeadSpec:
    """Local paths made absolute, since processes work in other folders."""
    root = spec.labels.root if spec.labels.root == "embedded" else storage.absolute(spec.labels.root)
    task = spec.task
    if isinstance(task, Correspondence) and "/" in task.pairs:
        task = task.model_copy(update={"pairs": storage.absolute(task.pairs)})
    return spec.model_copy(
        update={
            "head": storage.absolute(spec.head),
            "store": storage.absolute(spec.store),
            "work": str(Path(spec.work_folder).absolute()),
            "labels": spec.labels.model_copy(update={"root": root}),
            "task": task,
        }
    )


def _train(console: Console, problem: Problem, folder: HeadFolder, device: str) -> Results | None:
    spec = problem.spec
    says = _Says(console, spec, live=spec.processes == 1)
    if spec.processes > 1:
        from pipeline.heads.parallel import train_together  # Ray is not waited for where it is not needed

        splits = [split.number for split in problem.splits]
        with stop_after_step(console) as asked, following(Path(spec.work_folder), splits, says, asked):
            train_together(spec)
        return folder.results()
    with stop_after_step(console) as asked:

        def on_step(split: Split, step: int, logged: dict[str, float]) -> bool:
            says(split.number, step, logged)
            return asked.is_set()

        return train_splits(problem, folder, Path(spec.work_folder), device, on_step=on_step)


class _Says:
    """A line now and then of each split; not `live`, where not every step is told."""

    def __init__(self, console: Console, spec: HeadSpec, *, live: bool) -> None:
        self._console, self._steps, self._live = console, spec.task.steps, live
        self._splits: dict[int, TrainingProgress] = {}

    def __call__(self, split: int, step: int, logged: dict[str, float]) -> None:
        if split not in self._splits:
            name = split_name(split)
            self._splits[split] = TrainingProgress(self._console, name, self._steps, live=self._live)
        self._splits[split](step, logged)


def _warn_of_skipped(problem: Problem) -> None:
    for reason, count in problem.examples.skipped.most_common():
        logger.warning("%d rows are left out: %s", count, reason)


def _show_plan(console: Console, problem: Problem, device: str) -> None:
    arrays = Table("read", "a row", title=problem.spec.store)
    for name, shape in problem.choice.shapes.items():
        arrays.add_row(escape(name), "x".join(map(str, shape)))
    console.print(arrays)
    table = Table(show_header=False)
    spec, head = problem.spec, problem.task.network()
    table.add_row("head", spec.head)
    table.add_row("checkpoints", spec.work_folder)
    table.add_row(
        "task", f"{spec.task.type}, {len(problem.classes)} classes" if problem.classes else spec.task.type
    )
    numbers = sum(one.numel() for one in head.parameters())
    table.add_row(
        "trained", f"{numbers / 1e6:,.2f} million numbers, at most {spec.task.steps:,} steps, on {device}"
    )
    for split in problem.splits:
        sizes = ", ".join(f"{part} {count:,}" for part, count in split.sizes.items())
        table.add_row(split_name(split.number), sizes)
    console.print(table)


def show(console: Console, spec: HeadSpec, results: Results) -> None:
    """Print mean and standard deviation over the splits, and where everything is."""
    table = Table("metric", "mean", "sd", title=f"{results.task}: {len(results.splits)} splits, percent")
    for name, (mean, deviation) in results.metrics.items():
        spread = f"{100 * deviation:.2f}" if len(results.splits) > 1 else "-"
        table.add_row(name, f"{100 * mean:.2f}", spread)
    console.print(table)
    console.print(spec.head, markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    from jobs.cli import main

    sys.argv.insert(1, "train-head")
    main()
