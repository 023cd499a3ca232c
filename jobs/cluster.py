"""`gatehouse cluster check`: whether a cluster file can be used, and what a job would ask of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.table import Table

from jobs.report import duration, size
from schemas.cluster_file import ClusterFile
from schemas.spec import ExtractSpec

if TYPE_CHECKING:  # brings torch, which the file alone need not wait for
    from pipeline.demand import Demand

SOUND, WRONG = 0, 2
"""Exit codes."""


def check(
    file: ClusterFile,
    spec: ExtractSpec | None = None,
    *,
    images: int | None = None,
    rate: float | None = None,
    price: float | None = None,
) -> int:
    """Print what a file's machines are, what a job asks of them, and every problem; return the exit code.

    Args:
        file: that was read.
        spec: of the job; none, and only the file is looked at.
        images: of the whole job, where the shards that are there now are only a sample.
        rate: images a second that one actor does, as measured.
        price: of one worker machine an hour, in any currency.

    Raises:
        ValueError: what planning finds wrong with the spec.
        OSError: shards or configs cannot be read.
    """
    console = Console()
    problems = list(file.problems)
    console.print(_machines(file))
    if spec is not None:
        from pipeline.demand import demand, misfits, rate_of

        found = demand(spec, file.workers, images=images, rate=rate_of(spec, rate))
        problems += misfits(spec.cluster, file.workers, found.memory)
        console.print(_needs(found, price))
    for problem in problems:
        typer.echo(f"problem: {problem}")
    typer.echo(f"cluster check: {len(problems)} problems" if problems else "cluster check: sound")
    return WRONG if problems else SOUND


def _machines(file: ClusterFile) -> Table:
    table = Table("workers", "at most", "CPUs", "GPUs", "memory")
    for kind in file.workers:
        cpus, gpus = ("not said" if one is None else str(one) for one in (kind.cpus, kind.gpus))
        memory = "not said" if kind.memory is None else size(kind.memory)
        table.add_row(kind.name, str(kind.most), cpus, gpus, memory)
    return table


def _needs(found: Demand, price: float | None) -> Table:
    about = "" if found.exact else "about "
    weights = "unknown: they are on a hub" if found.weights is None else size(found.weights)
    in_all = "" if found.weights is None else f"; weights {size(found.machines * found.weights)} in all"
    table = Table(show_header=False)
    table.add_row("images", f"{about}{found.images:,}")
    table.add_row("actors", f"{found.actors}{', a GPU each' if found.gpus else ''}")
    table.add_row("machines", f"{found.machines}")
    table.add_row("main memory an actor", f"{size(found.memory)} in its queues, beside libraries and weights")
    table.add_row(
        "GPU memory an actor", f"weights: {weights}; activations: see `gatehouse extract --dry-run`"
    )
    table.add_row("disk a machine", f"weights: {weights}, beside the image and Ray's logs")
    scaled = "about " if found.scaled else ""
    table.add_row("network in", f"{scaled}{size(found.read)} of shards{in_all}")
    table.add_row("network out", f"{about}{size(found.written)}, before compression")
    table.add_row("speed", f"{found.rate.images:.3g} images a second and actor, {found.rate.source}")
    table.add_row("time", f"about {duration(found.seconds)}, without waiting for machines")
    cost = (
        "give --price" if price is None else f"about {found.cost(price):,.2f} for the workers, whole machines"
    )
    table.add_row("cost", cost)
    return table
