"""`gatehouse shard`: images in files, or a public data set's folder -> WebDataset shards."""

from __future__ import annotations

import typer

from pipeline.public import catalogue
from pipeline.shard_writer import open_empty, write_shards


def shard(images: list[str], out: str, shard_size: int = 1000) -> None:
    """Make shards from images, with the `.txt` beside each as its caption, and print their URLs.

    Raises:
        ValueError: no images found, or `out` already holds shards.
        OSError: storage failed.
    """
    for url in write_shards(images, out, shard_size):
        typer.echo(url)


def shard_dataset(name: str, paths: list[str], out: str, shard_size: int = 1000) -> None:
    """Make shards with labels from a public data set, and print their URLs; on stderr, what was found.

    Args:
        name: of the data set.
        paths: its folder, or the folder that holds it.
        out: URL of a folder without shards.
        shard_size: images a shard, at least 1.

    Raises:
        ValueError: an unknown data set, several paths, files that are not as published, or `out` already holds shards.
            Nothing was written.
        OSError: storage failed.
    """
    if len(paths) != 1:
        raise ValueError(f"{len(paths)} paths given with --dataset; give the one folder of {name}")
    open_empty(out)  # before labels are checked, which may take minutes
    found = catalogue.find(name, paths[0])
    counts = ", ".join(f"{len(images)} {split}" for split, images in found.splits.items())
    typer.echo(f"{name}: {counts} images; {len(found.classes)} classes", err=True)
    for note in found.notes:
        typer.echo(f"{name}: {note}", err=True)
    for url in catalogue.write(found, out, shard_size):
        typer.echo(url)
