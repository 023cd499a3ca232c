"""The command line. Each command only reads its options and hands over to the job's module.

Jobs are imported when they are called: `--help` and a wrong spec must not wait seconds for torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from jobs import cli_embedded

_USER_ERRORS = (ValueError, OSError)
"""What users can mend (a wrong spec or argument, a missing file, a missing right); all else is ours: a traceback."""


class _Group(TyperGroup):
    """Prints users' errors as messages: exit code 2 for a wrong spec or argument, 1 for files and storage."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except _USER_ERRORS as error:
            if ctx.params["debug"]:
                raise
            typer.echo(str(error), err=True)
            raise typer.Exit(2 if isinstance(error, ValueError) else 1) from error


app = typer.Typer(cls=_Group, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.add_typer(cli_embedded.app, name="embedded")

Store = Annotated[str, typer.Argument(help="Folder or URL of the store.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]


@app.callback()
def gatehouse(debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False) -> None:
    """Images to a store of diffusion features."""


@app.command()
def extract(
    spec: Annotated[str, typer.Argument(help="Path or URL of the spec, a YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override, as in groups.0.seed=1.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Do only so many images of those that are left.")
    ] = None,
    dry_run: DryRun = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Do failed rows again whose reason can pass.")
    ] = False,
    retry_reason: Annotated[
        list[str] | None, typer.Option(metavar="REASON", help="Do again what failed for this reason.")
    ] = None,
    serial: Annotated[bool, typer.Option("--serial", help="One process, no Ray: for debugging.")] = False,
) -> None:
    """Shards in, a feature store out; the same command goes on after a crash."""
    from schemas.spec import ExtractSpec
    from schemas.specfile import load

    load(spec, overrides or ())
    from jobs.extract import run  # after the first check, which must not wait for torch and Ray
    from pipeline.layouts import wrong_taps

    checked: ExtractSpec = load(spec, overrides or (), check=wrong_taps)

    code = run(
        checked,
        limit=limit,
        dry_run=dry_run,
        retry_failed=retry_failed,
        retry_reasons=tuple(retry_reason or ()),
        serial=serial,
    )
    raise typer.Exit(code)


@app.command()
def caption(
    spec: Annotated[str, typer.Argument(help="Path or URL of the caption spec, a YAML file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override, as in model.batch_size=1."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Do only so many images of those left, in whole shards.")
    ] = None,
    dry_run: DryRun = False,
    serial: Annotated[bool, typer.Option("--serial", help="One process, no Ray: for debugging.")] = False,
) -> None:
    """Shards in, captions out, for prompts that take them; the same command goes on after a crash."""
    from schemas.captions import CaptionSpec
    from schemas.specfile import load

    checked = load(spec, overrides or (), CaptionSpec)
    from jobs.caption import run  # after the check, which must not wait for torch and Ray

    raise typer.Exit(run(checked, limit=limit, dry_run=dry_run, serial=serial))


@app.command()
def gate(
    spec: Annotated[str, typer.Argument(help="Path or URL of the GATE spec, a YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override, as in images=64.")
    ] = None,
    dry_run: DryRun = False,
    serial: Annotated[bool, typer.Option("--serial", help="One process, no Ray: for debugging.")] = False,
) -> None:
    """A few images in; which techniques suppress content shift, and the feature groups to extract, out."""
    from schemas.gate import GateSpec
    from schemas.specfile import load

    checked = load(spec, overrides or (), GateSpec)
    from jobs.gate import run  # after the check, which must not wait for torch and Ray

    raise typer.Exit(run(checked, dry_run=dry_run, serial=serial))


@app.command()
def train_lora(
    spec: Annotated[str, typer.Argument(help="Path or URL of the LoRA spec, a YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override, as in steps=500.")
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """A few images in, two LoRA files out; the same command goes on after a crash."""
    from schemas.lora import LoraSpec
    from schemas.specfile import load

    checked = load(spec, overrides or (), LoraSpec)
    from jobs.train_lora import run  # after the check, which must not wait for torch

    raise typer.Exit(run(checked, dry_run=dry_run))


@app.command()
def presets(
    name: Annotated[str | None, typer.Argument(help="Print this preset, ready for `> spec.yaml`.")] = None,
) -> None:
    """Specs to start from: a table of them, or the text of one."""
    from jobs.presets import run

    run(name)


@app.command()
def taps(
    backbone: Annotated[str, typer.Argument(help="Folder, URL, hub id or single file, or 'embedded'.")],
    revision: Annotated[str | None, typer.Option(help="Commit of a hub id.")] = None,
    config: Annotated[str | None, typer.Option(help="Of a single file: folder with its configs.")] = None,
    image_size: Annotated[
        str | None, typer.Option(metavar="N|HxW", help="Pixels; default: what the network was trained at.")
    ] = None,
    match: Annotated[
        str | None, typer.Option(metavar="PATTERN", help="Only names with this part, or like this: up-*-out.")
    ] = None,
) -> None:
    """List what a backbone's layers can give: shape, bytes, compute; from its configs alone."""
    from schemas.spec import Backbone

    spec = Backbone(source=backbone, revision=revision, config=config)
    from jobs.taps import run

    raise typer.Exit(run(spec, image_size=image_size, match=match))


@app.command()
def shard(
    images: Annotated[list[str], typer.Argument(help="Images, or folders of images.")],
    out: Annotated[str, typer.Option(help="Folder or URL to write shards to.")],
    shard_size: Annotated[int, typer.Option(min=1, help="Images a shard.")] = 1000,
) -> None:
    """Make shards from images."""
    from jobs.shard import shard as make_shards

    make_shards(images, out, shard_size)


@app.command()
def inspect(
    store: Store,
    out: Annotated[str | None, typer.Option(help="Where to write the picture.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="Images in the picture.")] = 6,
) -> None:
    """Show a store: a table of its arrays, a picture of some rows."""
    from jobs.inspect import run

    raise typer.Exit(run(store, out=out, rows=rows))


@app.command()
def verify(
    store: Store,
    fast: Annotated[bool, typer.Option("--fast", help="Compare sizes only, read no features.")] = False,
) -> None:
    """Check that every committed row is there, readable, unique and as written."""
    from jobs.verify import run

    raise typer.Exit(run(store, fast=fast))


@app.command()
def gc(
    store: Store,
    dry_run: DryRun = False,
    abandoned: Annotated[
        bool, typer.Option("--abandoned", help="Also attempts without an outcome; no job may be running.")
    ] = False,
) -> None:
    """Remove what lost and dead attempts left behind."""
    from jobs.gc import run

    raise typer.Exit(run(store, dry_run=dry_run, abandoned=abandoned))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command in `arguments` (default: the process's) and exit the process with its code."""
    app(args=arguments, prog_name="gatehouse")


if __name__ == "__main__":
    main()
