"""Check a store against its markers, and name every fault."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from jobs.report import size
from pipeline.verify import Fault, Verifier

SOUND, FAULTY = 0, 1
"""Exit codes."""


def run(store: str, *, fast: bool) -> int:
    """Print every fault as it is found and a table of what was checked; return the exit code.

    Args:
        store: folder or URL.
        fast: compare sizes instead of contents, read no features.

    Raises:
        StoreError: no store there, or one of another schema version.
    """
    console = Console()
    verifier = Verifier(store, fast=fast)
    faults = warnings = 0
    with console.status(f"verify: {store}"):
        for fault in verifier.faults():
            console.print(_line(fault), markup=False, highlight=False, soft_wrap=True)
            faults += not fault.harmless
            warnings += fault.harmless
    table = Table(show_header=False, title=f"verify: {'faulty' if faults else 'sound'}")
    for kind in ("shards", "markers", "records", "rows", "arrays", "objects", "compactions"):
        table.add_row(kind, f"{verifier.checked[kind]:,}")
    content = "sizes only" if fast else "every byte read"
    table.add_row("content", f"{size(verifier.checked['bytes'])}, {content}")
    table.add_row("faults", f"{faults:,}")
    table.add_row("warnings", f"{warnings:,}")
    table.add_row("store", store)
    console.print(table)
    return FAULTY if faults else SOUND


def _line(fault: Fault) -> str:
    where = "" if fault.shard is None else f"{fault.shard}: "
    return f"{'warning' if fault.harmless else 'fault'}: {where}{fault.subject}: {fault.problem}"
