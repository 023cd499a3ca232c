"""`gatehouse shard`: images in files -> WebDataset shards."""

from __future__ import annotations

import typer

from pipeline.shard_writer import write_shards


def shard(images: list[str], out: str, shard_size: int = 1000) -> None:
    """Make shards from images, with the `.txt` beside each as its caption, and print their URLs.

    Raises:
        ValueError: no images found, or `out` already holds shards.
        OSError: storage failed.
    """
    for url in write_shards(images, out, shard_size):
        typer.echo(url)
