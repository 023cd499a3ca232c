"""What a person sees of a job: the plan, a live bar (plain lines where there is no terminal), and a summary."""

from __future__ import annotations

import time
from collections import Counter
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from schemas.receipts import ArrayLayout, RunRecord

if TYPE_CHECKING:  # both bring torch, which verify, gc and inspect need not wait for
    from pipeline.plan import Plan
    from pipeline.probe import Probe

_LINE_EVERY_S = 15.0


def size(number: float) -> str:
    """Bytes for reading."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(number) < 1024 or unit == "TiB":
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    raise AssertionError("unreachable")


def duration(seconds: float) -> str:
    """Seconds for reading."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes:02d} min"
        if hours
        else f"{minutes} min {rest:02d} s"
        if minutes
        else f"{seconds:.1f} s"
    )


def arrays_table(arrays: list[ArrayLayout]) -> Table:
    """One line an array."""
    table = Table("group", "tap", "shape of a row", "dtype", "bytes a row")
    for array in arrays:
        table.add_row(array.group, array.tap, str(array.shape), array.dtype, f"{array.row_bytes:,}")
    return table


def show_plan(console: Console, plan: Plan, probe: Probe, actors: int, held_bytes: int) -> None:
    """What `--dry-run` prints."""
    rows = f"{plan.rows:,}" if plan.rows_exact else f"about {plan.rows:,}"
    batch = plan.spec.backbone.batch_size
    memory = probe.fixed_bytes + batch * probe.bytes_per_image + held_bytes
    console.print(arrays_table(plan.manifest.arrays))
    table = Table(show_header=False)
    table.add_row("store", plan.spec.store)
    table.add_row("shards", f"{len(plan.shards):,}")
    table.add_row("rows", rows)
    table.add_row("bytes a row", f"{plan.row_bytes:,}, before compression")
    table.add_row("bytes in all", f"{size(plan.row_bytes * plan.rows)}, before compression")
    table.add_row("rows a block", f"{plan.manifest.rows_per_block:,}")
    table.add_row("timesteps", ", ".join(f"{group}: {at}" for group, at in plan.manifest.timesteps.items()))
    if plan.spec.selection is not None:
        table.add_row("groups", f"of the selection {plan.spec.selection.url}")
    scores = f", {probe.reference_calls} of them for scores alone" if probe.reference_calls else ""
    table.add_row("passes of the network", f"{probe.network_calls} an image{scores}")
    table.add_row("actors", f"{actors} on {probe.device}")
    table.add_row("memory an actor", f"about {size(memory)} at batch size {batch}")
    seconds = probe.seconds_per_image * plan.rows / actors
    table.add_row(
        "time", f"about {duration(seconds)}: {probe.seconds_per_image:.3f} s an image in a probe of two"
    )
    console.print(table)


def show_summary(console: Console, record: RunRecord, store: str) -> None:
    """How a run ended."""
    console.print(f"extract: {record.outcome}", highlight=False, soft_wrap=True)
    table = Table(show_header=False)
    rate = record.images / record.seconds if record.seconds else 0.0
    table.add_row("images", f"{record.images:,} in {duration(record.seconds)} ({rate:.1f} a second)")
    for reason, count in sorted(record.counts.items(), key=lambda item: -item[1]):
        table.add_row("ok" if reason == "ok" else f"bad: {reason}", f"{count:,}")
    for shard in record.set_aside:
        table.add_row("set aside", f"{shard} (again with --retry-failed)")
    table.add_row("store", store)
    console.print(table)


class ProgressReport:
    """Images/s, bytes written, time left and bad samples while a job runs.

    Args:
        console: where to write.
        rows: expected in this run.
    """

    def __init__(self, console: Console, rows: int) -> None:
        self._console, self._rows = console, rows
        self._started = self._last_line = time.monotonic()
        self._bar = Progress(
            TextColumn("extract"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f} images"),
            TextColumn("{task.fields[text]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("extract", total=rows, text="")

    def __enter__(self) -> ProgressReport:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __call__(self, progress: dict[str, float]) -> None:
        """Take the counters of all actors together."""
        done = Counter(progress)
        now = time.monotonic()
        rate = done["images"] / max(1e-9, now - self._started)
        left = duration((self._rows - done["images"]) / rate) if rate and done["images"] < self._rows else "-"
        text = f"{rate:.1f}/s  {size(done['bytes_written'])}  left {left}  bad {done['bad']:.0f}"
        total = max(self._rows, done["images"])
        self._bar.update(self._task, completed=done["images"], total=total, text=text)
        if not self._console.is_terminal and now - self._last_line >= _LINE_EVERY_S:
            self._last_line = now
            self._console.print(f"extract: {done['images']:.0f}/{total:.0f} images  {text}", highlight=False)
