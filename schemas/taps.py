"""The tap vocabulary: the name of every site in a network whose activation can be kept.

In UNets a name reads `STAGE-levelL-repeatR-SITE`: stage `down`, `mid` or `up`, level = index of the block within
its stage, repeat = index of the residual unit within its block. The mid block has no level, and its attention no
repeat.

    unet-in, unet-after-conv-in, unet-out      the network's input; after its first and its last convolution
    ...-res-increment, -res-out                residual unit, before and after its shortcut is added
    ...-vit-blockI-self-q, -self-k, -self-v    projections of self-attention, before the split into heads
    ...-vit-blockI-cross-q                     the same of cross-attention (k, v: prompt alone)
    ...-vit-blockI-self-map, -cross-map        softmax attention
    ...-vit-blockI-ffn-inner                   after the first feed-forward layer with its gate
    ...-vit-blockI-out, -vit-out               transformer block; whole attention module with its residual
    ...-downsampler-out, -upsampler-out        after the resampling convolution

In transformers it reads `vit-blockI-SITE`: `schemas.dit_taps` has the list. In both, some taps are made of sites:

    ...-self-map-pooledN    a self-map with queries averaged and keys summed over cells of N x N tokens
    ...-self-map-mean, ...-cross-map-mean      a map's mean over heads
    attn                    cross-attention maps of several layers in one picture: see `pipeline.attn`

Names follow from the network's config: nothing here needs torch. `pipeline.taps` records what they name.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from schemas import dit_taps, unet_taps

Config = Mapping[str, Any]
"""A diffusers network's config: the content of its config.json, or `network.config`."""

ATTN = "attn"
SETS = ("legacy", "practical", "middle")
"""Named sets of taps; `sets` says which a network has. Transformers have no `legacy` and no `practical`."""

_MAP = re.compile(r"(.*-(?:self|cross|dual)-map)(?:-(mean)|-pooled(\d+))?")


@dataclass(frozen=True)
class Map:
    """An attention map, and how it is reduced."""

    site: str
    """The name of the whole map."""
    over_heads: bool = False
    """Averaged over heads: [1, query, key]."""
    pool: int = 1
    """Side of a cell, in tokens."""


def kind(tap: str) -> Literal["map", "attention"]:
    """What a tap holds for one image: `map` [C, h, w], or `attention` [heads, query, key]."""
    return "map" if as_map(tap) is None else "attention"


def as_map(tap: str) -> Map | None:
    """A tap's attention map, None for a tap that is none."""
    match = _MAP.fullmatch(tap)
    if match is None:
        return None
    site, mean, pool = match.groups()
    return Map(site, over_heads=mean is not None, pool=int(pool or 1))


def by_token(tap: str) -> bool:
    """Whether a tap's values are about single tokens of the prompt, so that they change their meaning with it."""
    found = as_map(tap)
    return tap == ATTN or (found is not None and found.site.endswith("-cross-map"))


def names(config: Config) -> list[str]:
    """Every site of a network, in the order in which it computes them (SD 1.5 has 197, SDXL 612).

    Raises ValueError where the config is of none of the networks that have names, or has blocks without.
    """
    return _vocabulary(config).names(config)


def sets(config: Config) -> dict[str, list[str]]:
    """The named sets that a network has, with their taps in the network's order."""
    found = {}
    for name, taps in _vocabulary(config).SETS.items():
        try:
            found[name] = resolve(taps(config), config)
        except ValueError:  # the set is of another layout
            continue
    return found


def resolve(requested: str | Sequence[str], config: Config) -> list[str]:
    """Taps and names of sets (`SETS`) -> taps in the network's order, each once, `attn` last.

    Raises ValueError for a name that is neither, for what this network does not have, and for no name.
    """
    known = names(config)
    wanted: set[str] = set()
    for name in [requested] if isinstance(requested, str) else requested:
        if name in SETS:
            wanted.update(_set(name, config))
        else:
            _check(name, known, config)
            wanted.add(name)
    if not wanted:
        raise ValueError(f"no tap is named; {_allowed(known, config)}")
    places = {name: place for place, name in enumerate(known)}
    return sorted(wanted, key=lambda tap: _place(tap, places))


def _place(tap: str, places: Mapping[str, int]) -> tuple[int, bool, int]:
    """Reduced maps behind the whole one, smaller cells first."""
    found = as_map(tap)
    if found is None:
        return places.get(tap, len(places)), False, 0
    return places[found.site], found.over_heads, found.pool


def _set(name: str, config: Config) -> list[str]:
    own = _vocabulary(config).SETS
    if name not in own:
        raise ValueError(
            f"the set {name!r} is not defined for networks like this one; its sets are {', '.join(own)}"
        )
    return own[name](config)


def _check(name: str, known: list[str], config: Config) -> None:
    found = as_map(name)
    if name == ATTN:
        if not any(tap.endswith("-cross-map") for tap in known):
            raise ValueError("the tap 'attn' is made of cross-attention maps, of which this network has none")
    elif (name if found is None else found.site) not in known:
        raise ValueError(_unknown(name, known, config))
    elif found is not None and name != found.site:
        _check_reduction(name, found)


def _check_reduction(name: str, found: Map) -> None:
    if found.over_heads:
        return
    if found.site.endswith("-cross-map"):
        raise ValueError(
            f"{name!r}: only self-maps are pooled, since a prompt's tokens are no grid; take {found.site}"
        )
    if found.pool < 2 or found.pool & (found.pool - 1):
        raise ValueError(
            f"{name!r}: cells of {found.pool} tokens; allowed are powers of two from 2, as in pooled2"
        )


def _unknown(name: str, known: list[str], config: Config) -> str:
    near = difflib.get_close_matches(name, [*sets(config), ATTN, *known], n=5, cutoff=0.5)
    hint = f"nearest: {', '.join(near)}; " if near else ""
    return f"{name!r} is no tap of this network; {hint}{_allowed(known, config)}"


def _allowed(known: list[str], config: Config) -> str:
    return (
        f"allowed are this network's {len(known)} taps, 'attn' and the sets {', '.join(sets(config))}"
        " (gatehouse taps lists them)"
    )


def _vocabulary(config: Config) -> Any:
    name = dit_taps.class_name(config)
    if name in dit_taps.NETWORKS:
        return dit_taps
    if name in (None, "UNet2DConditionModel"):
        return unet_taps
    raise ValueError(
        f"taps have no names in a {name}; they have in UNet2DConditionModel, {', '.join(dit_taps.NETWORKS)}"
    )
