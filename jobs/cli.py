"""The command line. Each command only reads its options and hands over to the job's module.

Jobs are imported when they are called: `--help` and a wrong spec must not wait seconds for torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, get_args

import typer
from typer.core import TyperGroup

from jobs import cli_cluster, cli_embedded
from schemas.dataset import PublicName

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
app.add_typer(cli_cluster.app, name="cluster")
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
    share: Annotated[
        bool, typer.Option("--share", help="Work beside other drivers that were told the same.")
    ] = False,
    trace: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Write when each stage was at work, for chrome://tracing or Perfetto."
        ),
    ] = None,
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
        share=share,
        trace=trace,
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
def train_head(
    spec: Annotated[str, typer.Argument(help="Path or URL of the head spec, a YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override, as in task.steps=500.")
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Stored features and labels in, a trained head and its scores out; the same command goes on after a crash."""
    from schemas.head import HeadSpec
    from schemas.specfile import load

    checked = load(spec, overrides or (), HeadSpec)
    from jobs.train_head import run  # after the check, which must not wait for torch

    raise typer.Exit(run(checked, dry_run=dry_run))


@app.command()
def predict(
    head: Annotated[str, typer.Argument(help="Folder or URL of the head.")],
    images: Annotated[
        list[str], typer.Argument(help="Images, or folders of images; for correspondence, the source first.")
    ],
    out: Annotated[str, typer.Option(help="Folder or URL to write to.")] = "predictions",
    split: Annotated[int, typer.Option(help="Whose weights to take.")] = 0,
    caption: Annotated[
        str | None, typer.Option(help="Of images without a .txt beside them, where a prompt takes it.")
    ] = None,
    points: Annotated[
        list[str] | None,
        typer.Option(
            metavar="X,Y", help="In pixels of the source; repeat it, or quote several. Default: a grid."
        ),
    ] = None,
    store: Annotated[
        str | None, typer.Option(help="Where the store is now that the head was trained on.")
    ] = None,
    moved: Annotated[
        list[str] | None,
        typer.Option(metavar="OLD=NEW", help="Where weights are now that the store's spec names."),
    ] = None,
    allow_calls: Annotated[
        bool, typer.Option("--allow-calls", help="Run functions that the store names for control images.")
    ] = False,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option()] = "auto",
) -> None:
    """A trained head on new images: masks, classes, or points found again."""
    from jobs.predict import run

    code = run(
        head,
        images,
        out=out,
        split=split,
        caption=caption,
        points=points or (),
        store=store,
        moved=moved or (),
        allow_calls=allow_calls,
        device=device,
    )
    raise typer.Exit(code)


@app.command()
def reproduce(
    name: Annotated[str, typer.Argument(help=f"Of the experiment: {', '.join(get_args(PublicName))}.")],
    data: Annotated[str, typer.Option(help="Folder or URL of the public data set, as published.")],
    work: Annotated[
        str | None, typer.Option(help="Local folder for all that is made; default: ./reproduce-NAME.")
    ] = None,
    store: Annotated[
        str | None, typer.Option(help="Folder or URL of the features; default: in the work folder.")
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="Folder, URL, hub id or 'embedded'; default: Stable Diffusion 1.5.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Commit of a hub id.")] = None,
    controlnet: Annotated[str | None, typer.Option(help="For Canny edges, of that backbone.")] = None,
    controlnet_revision: Annotated[str | None, typer.Option(help="Commit of a hub id.")] = None,
    dtype: Annotated[
        str, typer.Option(help="That features are computed in; on a CPU give float32.")
    ] = "float16",
    image_size: Annotated[
        str | None, typer.Option(metavar="N|HxW", help="Pixels; default: the paper's.")
    ] = None,
    with_gate: Annotated[
        bool, typer.Option("--gate", help="Use the feature groups that GATE selects, not all of the paper's.")
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Few steps and images, to see that all works.")
    ] = False,
    dry_run: DryRun = False,
    serial: Annotated[bool, typer.Option("--serial", help="One process, no Ray: for debugging.")] = False,
) -> None:
    """One of the paper's experiments: a public data set in, a table beside the paper's figures out."""
    from pipeline.reproduce.options import checked

    options = checked(
        name=name,
        store=store,
        backbone=backbone,
        revision=revision,
        controlnet=controlnet,
        controlnet_revision=controlnet_revision,
        dtype=dtype,
        image_size=image_size,
        gate=with_gate,
        quick=quick,
    )
    from jobs.reproduce import run  # after the check, which must not wait for torch and Ray

    raise typer.Exit(run(options, data, work or f"reproduce-{name}", dry_run=dry_run, serial=serial))


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
    dataset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help=f"IMAGES is the folder of a public data set: {', '.join(get_args(PublicName))}.",
        ),
    ] = None,
) -> None:
    """Make shards from images, or from a public data set with its labels."""
    if dataset is not None:
        from jobs.shard import shard_dataset

        shard_dataset(dataset, images, out, shard_size)
        return
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
def status(
    store: Store,
    shards: Annotated[
        list[str] | None,
        typer.Option(metavar="PATTERN", help="Of the input; default: as in the spec that made the store."),
    ] = None,
    price: Annotated[
        float | None,
        typer.Option(
            min=0, metavar="USD", help="An hour of all that works on the job costs, for an estimate."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines: one JSON object.")] = False,
) -> None:
    """How far a job is, its rate and failures, who works on it, what it takes to finish; reads the store alone."""
    from jobs.status import run

    raise typer.Exit(run(store, shards=tuple(shards or ()), usd_per_hour=price, as_json=as_json))


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
        bool,
        typer.Option(
            "--abandoned",
            help="Also attempts without an outcome; no job, and no actor of a driver that was cut off, may be running.",
        ),
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
