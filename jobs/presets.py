"""`gatehouse presets`: what named specs there are, and their text."""

from __future__ import annotations

import typer
from rich.console import Console
from rich.table import Table

from jobs.report import size
from pipeline import presets


def run(name: str | None) -> None:
    """Print a preset's YAML, or a table of all.

    Raises:
        ValueError: there is no preset of that name.
    """
    if name is not None:
        typer.echo(presets.read(name).text, nl=False)
        return
    console = Console()
    found = [presets.read(known) for known in presets.names()]
    table = Table(caption="passes of the network and bytes (float16, before compression) are for each image")
    table.add_column("preset", no_wrap=True)
    table.add_column("backbone")
    for title in ("image", "groups", "passes", "bytes"):
        table.add_column(title, justify="right", no_wrap=True)
    for one in found:
        height, width = one.spec.image_size
        groups = len(one.spec.expanded_groups)
        cost = (str(groups), str(one.passes), size(one.bytes_per_image))
        table.add_row(one.name, one.backbone, f"{width} x {height}", *cost)
    console.print(table)
    for one in found:
        console.print(
            f"{one.name}: {one.what}\n    {one.source}", highlight=False, markup=False, soft_wrap=True
        )
    console.print("\ngatehouse presets NAME > spec.yaml, then fill in what the file says", highlight=False)
