"""What an experiment found beside what the paper found, as JSON and as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal

from pipeline.reproduce.deviations import COMMON
from pipeline.reproduce.experiment import Experiment, Figure
from pipeline.reproduce.groups import BASELINE
from pipeline.reproduce.options import Options
from pipeline.reproduce.specs import GATE, head_name
from schemas import __version__
from schemas.head import Results
from schemas.receipts import Receipt

_WARNING: Final = (
    "**A quick run: few steps and few images. These figures say that all works, and nothing of the method.**"
)


class Cell(Receipt):
    """A share in percent."""

    mean: float
    sd: float | None
    """Standard deviation over splits; None for one split."""


class Line(Receipt):
    """One metric of one head."""

    head: str
    metric: str
    baseline: Cell
    paper_baseline: Cell | None
    gate: Cell
    paper_gate: Cell | None


class Table(Receipt):
    """`table.json`."""

    version: Literal[1] = 1
    gatehouse: str
    """Version that wrote it."""
    name: str
    title: str
    quick: bool
    paper_baseline: str
    """The method whose figures the paper's are, without GATE; empty where it is not told."""
    lines: list[Line]
    heads: dict[str, Results]
    """All that heads found, by name."""
    run: list[str]
    """How this run differs from the experiment."""
    deviations: list[str]
    """How the experiment differs from the paper's protocol."""


def make_table(
    experiment: Experiment,
    options: Options,
    results: Mapping[str, Results],
    groups: Sequence[str],
    changed: Sequence[str],
) -> Table:
    """Figures side by side.

    Args:
        experiment, options: what was done.
        results: of every head, by name.
        groups: names of the feature groups that were amalgamated.
        changed: names of specs that are not as they were made.
    """
    return Table(
        gatehouse=__version__,
        name=experiment.name,
        title=experiment.title,
        quick=options.quick,
        paper_baseline=experiment.baseline,
        lines=[
            Line(
                head=one.head,
                metric=one.metric,
                baseline=_found(results[head_name(BASELINE, one.head)], one.metric),
                paper_baseline=_told(one.without),
                gate=_found(results[head_name(GATE, one.head)], one.metric),
                paper_gate=_told(one.gate),
            )
            for one in experiment.comparisons
        ],
        heads=dict(results),
        run=_run(options, groups, changed),
        deviations=[*COMMON, *experiment.deviations],
    )


def markdown(table: Table) -> str:
    """For reading."""
    of = f" ({table.paper_baseline})" if table.paper_baseline else ""
    rows = [
        ["", "without GATE", f"the paper's{of}", "GATE", "the paper's"],
        ["---"] * 5,
        *[
            [
                f"{line.metric}, {line.head} head" if line.head else line.metric,
                *map(_shown, (line.baseline, line.paper_baseline, line.gate, line.paper_gate)),
            ]
            for line in table.lines
        ],
    ]
    parts = [f"# {table.title}", *([_WARNING] if table.quick else [])]
    parts.append("\n".join(f"| {' | '.join(row)} |" for row in rows))
    parts.append("In percent; mean and standard deviation over splits where there are several.")
    if table.run:
        parts.append("This run is not the paper's experiment:\n\n" + _listed(table.run))
    parts.append("Otherwise than in the paper's protocol:\n\n" + _listed(table.deviations))
    return "\n\n".join(parts) + "\n"


def _run(options: Options, groups: Sequence[str], changed: Sequence[str]) -> list[str]:
    found = []
    if options.quick:
        found.append("Few steps, few training images, and the first shard of each split only (--quick).")
    if options.backbone is not None:
        found.append(f"The backbone is {options.backbone}.")
    if options.controlnet is not None:
        found.append(f"The ControlNet is {options.controlnet}.")
    if options.image_size is not None:
        found.append("Images are {} x {} px (height x width).".format(*options.image_size))
    if options.dtype != "float16":
        found.append(f"Features are computed in {options.dtype}.")
    if options.gate:
        found.append(f"Convolutional features are those that GATE selected (--gate): {', '.join(groups)}.")
    return found + [f"specs/{name}.yaml is not as this release makes it." for name in changed]


def _found(results: Results, metric: str) -> Cell:
    mean, deviation = results.metrics[metric]
    return Cell(mean=100 * mean, sd=100 * deviation if len(results.splits) > 1 else None)


def _told(figure: Figure | None) -> Cell | None:
    return None if figure is None else Cell(mean=figure.mean, sd=figure.sd)


def _shown(cell: Cell | None) -> str:
    if cell is None:
        return "-"
    return f"{cell.mean:.2f}" if cell.sd is None else f"{cell.mean:.1f} ± {cell.sd:.1f}"


def _listed(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
