"""Say how far a job is, from its store alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs.endings import DONE
from jobs.report import duration, size
from pipeline.status import look
from schemas.status import DriverSeen, Status


def run(store: str, *, shards: Sequence[str], usd_per_hour: float | None, as_json: bool) -> int:
    """Print the state of a store; return the exit code.

    Args:
        store: folder or URL.
        shards: patterns of the input; none for those of the spec that made the store.
        usd_per_hour: price of an hour of all that works on the job.
        as_json: print one JSON object (`schemas.status`) instead of a table.

    Raises:
        StoreError: no store there, or one of another schema version.
        ValueError: `shards` name nothing.
    """
    found = look(store, shards, usd_per_hour)
    if as_json:
        typer.echo(found.model_dump_json(indent=1))
        return DONE
    console = Console()
    table = Table(show_header=False, title=_headline(found))
    for name, text in _lines(found):
        table.add_row(name, Text(text))  # which may hold brackets that are no markup
    console.print(table)
    for note in found.notes:
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
    return DONE


def _headline(found: Status) -> str:
    if any(driver.alive for driver in found.drivers):
        return "status: at work"
    if found.shards.left is None:
        return "status: nobody is at work"
    return "status: nobody is at work, and shards are left" if found.shards.left else "status: done"


def _lines(found: Status) -> Iterator[tuple[str, str]]:
    yield "store", found.store
    known = "" if found.shards.known is None else f" of {found.shards.known:,}"
    parts = {"set aside or damaged": found.shards.set_aside, "cut by a limit": found.shards.cut}
    also = "".join(f", {count:,} {what}" for what, count in parts.items() if count)
    yield "shards done", f"{found.shards.done:,}{known}{also}"
    yield "rows good", f"{found.rows.good:,} ({size(found.bytes_of_rows)} before compression)"
    yield "rows bad", f"{found.rows.bad:,}"
    for reason, count in found.rows.reasons.items():
        yield f"bad: {reason}", f"{count:,}"
    yield from _pace(found)
    for driver in found.drivers:
        # One that died is of no interest once others have finished.
        if driver.alive or found.shards.left != 0:
            yield "driver" if driver.alive else "driver, silent", _driver(driver)
    if (run := found.last_run) is not None:
        yield "last run", f"{run.outcome} (exit code {run.exit_code}), {run.started}, {duration(run.seconds)}"
        spent = "" if found.spent_usd is None else f", {found.spent_usd:,.2f} USD"
        yield "runs ended", f"{found.runs:,}, {duration(found.worked_s)} in all{spent}"


def _pace(found: Status) -> Iterator[tuple[str, str]]:
    if found.last_commit_s is not None:
        yield "last commit", f"{duration(found.last_commit_s)} ago"
    if found.rate is not None:
        of = "commits" if found.rate.source == "commits" else "the last run"
        yield "rate", f"{found.rate.rows_per_s:.1f} rows/s, over {duration(found.rate.over_s)} of {of}"
    if found.rows.left:
        yield "rows left", f"about {found.rows.left:,}"
    if found.left is not None and found.left.seconds:
        cost = "" if found.left.usd is None else f", {found.left.usd:,.2f} USD"
        yield "to finish", f"about {duration(found.left.seconds)} at that rate{cost}"


def _driver(driver: DriverSeen) -> str:
    return (
        f"{driver.host}, process {driver.pid}, {driver.mode}, since {driver.started}, last sign of life"
        f" {duration(driver.silent_s)} ago: {driver.command}"
    )
