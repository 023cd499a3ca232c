"""The commands of `gatehouse cluster`; as in `cli`, each only reads its options and hands over."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Machines for a job.")


@app.callback()
def cluster() -> None:
    """Machines for a job."""


@app.command()
def check(
    file: Annotated[
        str, typer.Argument(help="Path or URL of the cluster launcher's file, as ray_cluster.yaml.")
    ],
    spec: Annotated[str | None, typer.Option(help="Path or URL of the spec of a job for it.")] = None,
    images: Annotated[
        int | None, typer.Option(min=1, help="Of the whole job, where the shards so far are a sample.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(min=1e-6, help="Images a second that one GPU was measured to do.")
    ] = None,
    price: Annotated[
        float | None, typer.Option(min=0, help="Of one worker machine an hour, for the cost.")
    ] = None,
) -> None:
    """Check a cluster file, and say what a job would ask of it: machines, bytes, time, cost. Starts nothing."""
    from schemas.cluster_file import load as load_file
    from schemas.specfile import load

    found, checked = load_file(file), None if spec is None else load(spec)
    from jobs.cluster import check as run

    raise typer.Exit(run(found, checked, images=images, rate=rate, price=price))
