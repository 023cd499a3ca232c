"""What 10^6, 10^8 and 10^10 images cost, from assumptions that can be changed: `python -m jobs.benchmarks.costs`.

Nothing here is measured but the share of float16 that compression leaves (`make bench`) and what the bookkeeping takes
(`python -m jobs.benchmarks.scale`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import typer

from pipeline.demand import ASSUMED_PASSES

IMAGES = (10**6, 10**8, 10**10)
BLOCK_BYTES = 256 * 2**20
"""`output.block_bytes`, before compression."""
INDEX_BYTES = 100
"""A row's record, compressed, once in its attempt and once compacted."""
OBJECTS = 5
"""That each shard has beside its blocks: claim, marker, index, list of objects, pooled vectors."""


@dataclass(frozen=True)
class Stored:
    """What is kept of an image, with Stable Diffusion 1.5 at 512 px."""

    what: str
    groups: int
    shapes: tuple[tuple[int, int, int], ...] = ()
    """Of the maps of a group, float16."""
    pooled: int = 0
    """Numbers of a group, float32."""

    @property
    def raw_bytes(self) -> int:
        """Of a row's maps."""
        return 2 * self.groups * sum(math.prod(shape) for shape in self.shapes)

    def blocks(self, rows: int) -> int:
        """Objects with the maps of a shard."""
        if not self.shapes:
            return 0
        per_block = max(1, BLOCK_BYTES // self.raw_bytes)
        return math.ceil(rows / per_block) * len(self.shapes) * self.groups


LEGACY = ((1280, 16, 16), (1280, 32, 32), (640, 64, 64), (320, 64, 64))
KEPT = (
    Stored("pooled vectors of the legacy taps, 1 group", 1, pooled=sum(shape[0] for shape in LEGACY)),
    Stored("one map [1280, 32, 32], 1 group", 1, ((1280, 32, 32),)),
    Stored("the legacy maps, 1 group", 1, LEGACY),
    Stored("the legacy maps, the paper's 4 groups", 4, LEGACY),
)


@dataclass(frozen=True)
class Prices:
    """What is assumed."""

    passes: float
    """Of the network a second and GPU, a pass a group."""
    gpu_usd: float
    """An hour of a machine with one GPU."""
    shard_rows: int
    compressed: float
    """Of float16, what compression leaves."""
    month_usd: float
    """A TB stored for a month."""
    puts_usd: float
    """A million PUT requests."""


def rows(prices: Prices) -> Iterator[list[str]]:
    """Lines of the table."""
    for images in IMAGES:
        for kept in KEPT:
            hours = images * kept.groups / prices.passes / 3600
            row = kept.raw_bytes * prices.compressed + 4 * kept.groups * kept.pooled + 2 * INDEX_BYTES
            terabytes = images * row / 1e12
            shards = images / prices.shard_rows
            puts = shards * (kept.blocks(prices.shard_rows) + OBJECTS) / 1e6
            yield [
                f"10^{round(math.log10(images))}",
                kept.what,
                f"{hours:,.0f}",
                _days(hours / 64),
                f"{hours * prices.gpu_usd:,.0f}",
                _short(terabytes),
                _short(terabytes * prices.month_usd),
                _short(puts),
                _short(puts * prices.puts_usd),
            ]


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def _days(hours: float) -> str:
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:,.0f} days"


HEADER = [
    "images",
    "stored",
    "GPU hours",
    "on 64 GPUs",
    "GPUs, USD",
    "TB",
    "USD a month",
    "million PUTs",
    "PUTs, USD",
]


def table(prices: Prices) -> str:
    """All of it, as Markdown."""
    lines = [HEADER, ["---"] * len(HEADER), *rows(prices)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(
    passes: Annotated[float, typer.Option(help="Passes a second and GPU.")] = ASSUMED_PASSES,
    gpu_usd: Annotated[float, typer.Option(help="An hour of a machine with one GPU.")] = 1.2,
    shard_rows: Annotated[int, typer.Option(help="Images a shard.")] = 1000,
    compressed: Annotated[float, typer.Option(help="Share of float16 that compression leaves.")] = 0.92,
    month_usd: Annotated[float, typer.Option(help="A TB stored for a month.")] = 23.0,
    puts_usd: Annotated[float, typer.Option(help="A million PUT requests.")] = 5.0,
) -> None:
    """Print the table."""
    print(table(Prices(passes, gpu_usd, shard_rows, compressed, month_usd, puts_usd)))


if __name__ == "__main__":
    typer.run(main)
