"""The commands of `gatehouse embedded`; as in `cli`, each only reads its options and hands over."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Make the embedded backbone anew, and measure it.")

Work = Annotated[str, typer.Option(help="Folder of scenes, checkpoints, logs, pictures and results.")]


@app.command()
def scenes(
    out: Annotated[str, typer.Option(help="Folder to write shards to; for training, WORK/scenes.")],
    stamps: Annotated[str, typer.Option(help="Folder of tuxpaint-stamps.")] = "/usr/share/tuxpaint/stamps",
    seen: Annotated[int, typer.Option(min=0, help="Scenes of cut-outs to train on.")] = 24_000,
    held_out: Annotated[int, typer.Option(min=0, help="Scenes of the other cut-outs.")] = 1200,
    drawn: Annotated[
        int, typer.Option(min=0, help="Scenes of drawings, which LoRAs are trained for.")
    ] = 1200,
    per_shard: Annotated[int, typer.Option(min=1, help="Scenes a shard.")] = 2000,
) -> None:
    """Compose scenes of cut-outs, with captions, masks and correspondences."""
    from jobs.embedded import make_scenes

    code = make_scenes(out, stamps=stamps, seen=seen, held_out=held_out, drawn=drawn, per_shard=per_shard)
    raise typer.Exit(code)


@app.command()
def train(
    stage: Annotated[str, typer.Argument(help="vae, unet or controlnet, in this order.")],
    work: Work,
    recipe: Annotated[
        str | None, typer.Option(help="gpu or cpu: how long, and on how much; default: by what is there.")
    ] = None,
    minutes: Annotated[float | None, typer.Option(min=0, help="Stop then; the same goes on.")] = None,
) -> None:
    """Train a stage; the same command goes on from its last checkpoint."""
    from jobs.embedded import recipe_of, train_stage

    raise typer.Exit(train_stage(stage, work, recipe=recipe_of(recipe), minutes=minutes))


@app.command()
def evaluate(
    shards: Annotated[str, typer.Option(help="Scenes of held-out cut-outs; a path, glob or URL.")],
    out: Annotated[str, typer.Option(help="Folder for figures and pictures.")],
    backbone: Annotated[str, typer.Option(help="A diffusers folder, or 'embedded'.")] = "embedded",
    controlnet: Annotated[str | None, typer.Option(help="Default: the embedded one.")] = None,
    loras: Annotated[str | None, typer.Option(help="Folder of both; default: the embedded ones.")] = None,
    target: Annotated[str | None, typer.Option(help="Scenes of the LoRAs' domain.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Only this figure; may be repeated.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="On few scenes, for a first look.")] = False,
) -> None:
    """Measure what a backbone is worth, and write a table, a json file and pictures."""
    from jobs.evaluate_embedded import run

    code = run(
        backbone=backbone,
        controlnet=controlnet,
        loras=loras,
        shards=shards,
        target=target,
        out=out,
        only=only,
        quick=quick,
    )
    raise typer.Exit(code)
