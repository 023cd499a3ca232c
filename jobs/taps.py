"""`gatehouse taps`: every tap of a backbone with its shape, its bytes and the compute that it takes to reach it."""

from __future__ import annotations

import fnmatch
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from jobs.report import size
from pipeline import attn, checkpoint, families, sources
from pipeline.backbone import Backbone as Family
from pipeline.maps import MAX_MAP_BYTES
from pipeline.tap_costs import Costs, TapCost, costs
from schemas import taps as vocabulary
from schemas.spec import Backbone

DONE = 0
"""Exit code."""
_FLOAT16, _FLOAT32 = 2, 4  # bytes
_DEFAULT_SIDE = 1024  # pixels, of networks whose config names no size


def run(backbone: Backbone, *, image_size: str | None, match: str | None) -> int:
    """Print the table and what belongs to it; return the exit code.

    Args:
        backbone: only its configs are read.
        image_size: `N` or `HxW` in pixels; default: what the network was trained at.
        match: part of a name, or a pattern with `*` and `?`, of the taps to list.

    Raises:
        ValueError: no backbone there, a size that it cannot take, or no tap of that name.
    """
    folder = sources.configs(backbone)
    family = families.family(folder)
    config = checkpoint.config(folder, family.network_part)
    side = _sides(image_size) if image_size else _trained_at(family, folder, config)
    latents, tokens = family.latent_shape(folder, side), family.text_tokens(folder)

    counted = costs(
        family.network_class,
        config,
        lambda network: family.blank_inputs(folder, network, latents, tokens),
    )
    listed = _listed(counted.taps, config, (latents[1], latents[2]))
    chosen = [tap for tap in listed if match is None or _matches(tap, match)]
    if not chosen:
        raise ValueError(
            f"no tap of {backbone.source!r} matches {match!r}; leave out --match to see all {len(listed)}"
        )
    console = Console()
    _say(console, f"{backbone.source}: {family.network_class.__name__}, {_with_count(chosen, listed)}")
    height, width = side
    _say(
        console, f"images {height} high and {width} wide, latents {_shape(latents)}, {tokens} tokens of text"
    )
    _say(
        console, f"a pass takes {counted.flops / 1e9:,.1f} GFLOP an image (matrix products and convolutions)"
    )
    console.print(_table(chosen, listed, counted))
    _say_sets(console, config, counted)
    _say_made(console, config, any(_too_large(tap, listed[tap]) for tap in chosen))
    return DONE


def _sides(given: str) -> list[int]:
    found = re.fullmatch(r"(\d+)(?:x(\d+))?", given)
    if found is None or not int(found[1]) or found[2] == "0":
        raise ValueError(f"--image-size is {given!r}; give N or HxW in pixels, as in 512 or 512x768")
    return [int(found[1]), int(found[2] or found[1])]


def _trained_at(family: type[Family], folder: Path, config: dict[str, Any]) -> list[int]:
    own = config.get("sample_size")
    if own is None:
        return [_DEFAULT_SIDE, _DEFAULT_SIDE]
    factor = 64 // family.latent_shape(folder, (64, 64))[1]  # pixels a latent
    return [factor * number for number in (own if isinstance(own, list) else [own, own])]


def _listed(
    found: dict[str, TapCost], config: dict[str, Any], latents: tuple[int, int]
) -> dict[str, TapCost]:
    """The network's sites, and `attn` with its own choices if these exist here."""
    try:
        maps = [found[tap.removesuffix("-mean")] for tap in attn.sources(config)]
    except ValueError:
        return found
    made = TapCost(attn.shape([cost.shape for cost in maps], latents), max(cost.flops for cost in maps))
    return {**found, vocabulary.ATTN: made}


def _matches(tap: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(tap, pattern) if set(pattern) & set("*?[") else pattern in tap


def _with_count(chosen: Sequence[str], listed: dict[str, TapCost]) -> str:
    whole = f"{len(listed)} taps"
    return whole if len(chosen) == len(listed) else f"{len(chosen)} of {whole}"


def _table(chosen: Sequence[str], listed: dict[str, TapCost], counted: Costs) -> Table:
    """Narrow enough for a terminal of 80 columns."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("tap", overflow="fold")
    for heading in ("shape", "float16", "compute"):
        table.add_column(heading, justify="right", no_wrap=True)
    for tap in chosen:
        cost = listed[tap]
        mark = "*" if _too_large(tap, cost) else ""
        needed = f"{cost.flops / counted.flops:.1%}"
        table.add_row(tap, _shape(cost.shape), size(_FLOAT16 * math.prod(cost.shape)) + mark, needed)
    return table


def _too_large(tap: str, cost: TapCost) -> bool:
    return vocabulary.kind(tap) == "attention" and _FLOAT32 * math.prod(cost.shape) > MAX_MAP_BYTES


def _say_sets(console: Console, config: dict[str, Any], counted: Costs) -> None:
    for name, taps in vocabulary.sets(config).items():
        of_set = [counted.taps[tap] for tap in taps]
        stored = size(sum(_FLOAT16 * math.prod(cost.shape) for cost in of_set))
        needed = max(cost.flops for cost in of_set) / counted.flops
        _say(console, f"set {name} ({stored}, {needed:.1%}): {', '.join(taps)}")


def _say_made(console: Console, config: dict[str, Any], refused: bool) -> None:
    """Taps that the table cannot list, since they take a number, and what its marks mean."""
    if refused:
        _say(console, f"* more than {size(MAX_MAP_BYTES)} in float32, and refused: take it pooled")
    if any(tap.endswith("-self-map") for tap in vocabulary.names(config)):
        _say(console, "...-self-map-pooledN: a self-map between cells of N x N tokens (2, 4, 8...)")
        _say(console, "...-map-mean: a map averaged over heads")
    try:
        made_of = attn.sources(config)
    except ValueError as error:
        _say(console, f"attn: {error}")
    else:
        _say(
            console,
            f"attn: cross-attention of {len(made_of)} layers in one picture; its stages, strides and tokens can be set",
        )


def _shape(sides: Sequence[int]) -> str:
    return "x".join(map(str, sides))


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
