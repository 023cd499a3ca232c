"""Remove what lost and dead attempts left behind, and say what it was."""

from __future__ import annotations

from collections import Counter

from rich.console import Console
from rich.table import Table

from jobs.endings import DONE, HELD
from jobs.report import size
from pipeline import gc
from pipeline.driving import driving
from pipeline.leases import Held
from pipeline.store import read_manifest

_LEASE_TTL_S = 60.0


def run(store: str, *, dry_run: bool, abandoned: bool) -> int:
    """Find garbage, remove it unless told otherwise, print what is freed; return the exit code.

    Args:
        store: folder or URL.
        dry_run: only say what would be removed.
        abandoned: also attempts without an outcome, leases and unfinished objects. No job may be running: the store is
            leased for this, so that none starts meanwhile. Actors whose driver is paused or cut off show no sign of
            life, and what they have in hand would be lost: their Ray job must be gone.

    Raises:
        StoreError: no store there, or one of another schema version.
        ValueError: a job turned out to be running; nothing was removed.
    """
    try:
        findings = _collect(store, dry_run=dry_run, abandoned=abandoned)
    except Held as error:
        Console(stderr=True).print(
            f"nothing was removed: {error}", markup=False, highlight=False, soft_wrap=True
        )
        return HELD
    objects, bytes_ = Counter[str](), Counter[str]()
    for one in findings.garbage:
        objects[one.kind] += 1
        bytes_[one.kind] += one.size
    console = Console()
    table = Table("what", "objects", "bytes", title=f"gc: {'would be freed' if dry_run else 'freed'}")
    for kind in objects:
        table.add_row(kind, f"{objects[kind]:,}", size(bytes_[kind]))
    table.add_row("in all", f"{objects.total():,}", size(bytes_.total()))
    console.print(table)
    if findings.undecided:
        console.print(
            f"attempts without an outcome: {len(findings.undecided):,}, left alone since they may still be at work;"
            " --abandoned removes them when no job is running",
            highlight=False,
        )
    return DONE


def _collect(store: str, *, dry_run: bool, abandoned: bool) -> gc.Findings:
    """Find and remove; what is taken for abandoned only while no driver is alive."""
    read_manifest(store)  # nothing may be written where no store is
    if abandoned and not dry_run:
        with driving(store, "exclusive", _LEASE_TTL_S) as driver:
            findings = gc.find(store, abandoned=True, driver=driver.me.driver)
            driver.keep_on()
            gc.remove(store, findings)
        return findings
    findings = gc.find(store, abandoned=abandoned)
    if not dry_run:
        gc.remove(store, findings)
    return findings
