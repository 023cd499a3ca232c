"""The tap vocabulary: the name of every site in a Stable Diffusion UNet whose activation can be kept.

A name reads `STAGE-levelL-repeatR-SITE`: stage `down`, `mid` or `up`, level = index of the block within its
stage, repeat = index of the residual unit within its block. The mid block has no level, and its attention no
repeat.

    unet-in, unet-after-conv-in, unet-out      the network's input; after its first and its last convolution
    ...-res-increment, -res-out                residual unit, before and after its shortcut is added
    ...-vit-blockI-self-q, -self-k, -self-v    projections of self-attention, before the split into heads
    ...-vit-blockI-cross-q                     the same of cross-attention (k, v: prompt alone)
    ...-vit-blockI-self-map, -cross-map        softmax attention
    ...-vit-blockI-ffn-inner                   after the first feed-forward layer with its gate
    ...-vit-blockI-out, -vit-out               transformer block; whole attention module with its residual
    ...-downsampler-out, -upsampler-out        after the resampling convolution

Names follow from the network's config: nothing here needs torch. `pipeline.taps` records what they name.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

Config = Mapping[str, Any]
"""A diffusers `UNet2DConditionModel` config: the content of its config.json, or `unet.config`."""

_BLOCK_SITES = ("self-q", "self-k", "self-v", "self-map", "cross-q", "cross-map", "ffn-inner", "out")
_ATTENDS = {  # block type -> whether its residual units are followed by attention
    "DownBlock2D": False,
    "CrossAttnDownBlock2D": True,
    "UNetMidBlock2D": False,
    "UNetMidBlock2DCrossAttn": True,
    "UpBlock2D": False,
    "CrossAttnUpBlock2D": True,
}
_PRACTICAL = (
    (  # SD 1.x and 2.x
        "up-level1-repeat1-vit-block0-cross-q",
        "up-level1-repeat2-res-out",
        "up-level2-repeat1-vit-block0-cross-q",
        "up-level3-repeat0-vit-block0-self-k",
    ),
    (  # SDXL
        "up-level0-repeat0-vit-block5-out",
        "up-level0-repeat0-vit-block7-out",
        "up-level1-repeat0-vit-block0-cross-q",
        "up-level1-repeat0-vit-block0-out",
    ),
)


def kind(tap: str) -> Literal["map", "attention"]:
    """What a tap holds for one image: `map` [C, h, w], or `attention` [heads, query, key]."""
    return "attention" if tap.endswith("-map") else "map"


def names(unet_config: Config) -> list[str]:
    """Every tap of a UNet, in the order in which the network computes them (SD 1.5 has 197, SDXL 612).

    Raises ValueError where the config is none of a UNet2DConditionModel, or has blocks without tap names.
    """
    down, middle, up = _block_types(unet_config)
    found = ["unet-in", "unet-after-conv-in"]
    for level, block in enumerate(down):
        found += _level(f"down-level{level}", _ATTENDS[block], _depths(unet_config, "down", level))
        if level < len(down) - 1:
            found.append(f"down-level{level}-downsampler-out")
    found += _mid(middle, _depths(unet_config, "mid", len(down) - 1))
    for level, block in enumerate(up):
        found += _level(f"up-level{level}", _ATTENDS[block], _depths(unet_config, "up", level))
        if level < len(up) - 1:
            found.append(f"up-level{level}-upsampler-out")
    return [*found, "unet-out"]


def resolve(requested: str | Sequence[str], unet_config: Config) -> list[str]:
    """Taps and set names (`SETS`) -> taps in the network's order, each once.

    Raises ValueError for a name that is neither, for a set that this network does not have, and for no name.
    """
    known = names(unet_config)
    wanted: set[str] = set()
    for name in [requested] if isinstance(requested, str) else requested:
        if name in SETS:
            wanted.update(SETS[name](unet_config))
        elif name in known:
            wanted.add(name)
        else:
            raise ValueError(_unknown(name, known))
    if not wanted:
        raise ValueError(f"no tap is named; {_allowed(known)}")
    return [name for name in known if name in wanted]


def _unknown(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, [*SETS, *known], n=5, cutoff=0.5)
    hint = f"nearest: {', '.join(near)}; " if near else ""
    return f"{name!r} is no tap of this network; {hint}{_allowed(known)}"


def _allowed(known: list[str]) -> str:
    return f"allowed are this network's {len(known)} taps and the sets {', '.join(SETS)}"


def _block_types(config: Config) -> tuple[list[str], str | None, list[str]]:
    missing = [key for key in ("down_block_types", "up_block_types") if key not in config]
    if missing:
        found = config.get("_class_name", "a config without _class_name")
        raise ValueError(
            f"not the config of a UNet2DConditionModel: {found} has no {' and no '.join(missing)}"
        )
    down, up = list(config["down_block_types"]), list(config["up_block_types"])
    middle = config.get("mid_block_type", "UNetMidBlock2DCrossAttn")
    for block in [*down, *up, *([] if middle is None else [middle])]:
        if block not in _ATTENDS:
            raise ValueError(f"the UNet has blocks of type {block}; taps are known for {', '.join(_ATTENDS)}")
    return down, middle, up


def _depths(config: Config, stage: Literal["down", "mid", "up"], level: int) -> list[int]:
    """Transformer blocks of each residual unit of a level, as diffusers reads them from a config."""
    levels = len(config["down_block_types"])
    units = config.get("layers_per_block", 2)
    units = [units] * levels if isinstance(units, int) else list(units)
    depths = config.get("transformer_layers_per_block", 1)
    depths = [depths] * levels if isinstance(depths, int) else list(depths)
    if stage == "up":
        units = [count + 1 for count in reversed(units)]
        depths = config.get("reverse_transformer_layers_per_block") or depths[::-1]
    count, depth = (1 if stage == "mid" else units[level]), depths[level]
    return [depth] * count if isinstance(depth, int) else list(depth)[:count]


def _level(prefix: str, attends: bool, depths: list[int]) -> Iterator[str]:
    for repeat, depth in enumerate(depths):
        unit = f"{prefix}-repeat{repeat}"
        yield from _residual(unit)
        if attends:
            yield from _attention(unit, depth)


def _mid(block: str | None, depths: list[int]) -> Iterator[str]:
    if block is None:
        return
    yield from _residual("mid-repeat0")
    if _ATTENDS[block]:
        yield from _attention("mid", depths[0])
        yield from _residual("mid-repeat1")


def _residual(unit: str) -> Iterator[str]:
    yield f"{unit}-res-increment"
    yield f"{unit}-res-out"


def _attention(unit: str, depth: int) -> Iterator[str]:
    for index in range(depth):
        for site in _BLOCK_SITES:
            yield f"{unit}-vit-block{index}-{site}"
    yield f"{unit}-vit-out"


def _legacy(config: Config) -> list[str]:
    """The output of every up level, as works before tap selection used them.

    The upsampler where a level has one, else what its last residual unit gives: `up-level3-repeat2-vit-out`
    with SD 1.x and 2.x (3,520 channels), `up-level2-repeat2-res-out` with SDXL (2,240), as in the reference.
    """
    up_taps = [name for name in names(config) if name.startswith("up-")]
    return [*(name for name in up_taps if name.endswith("-upsampler-out")), up_taps[-1]]


def _practical(config: Config) -> list[str]:
    """The paper's selection for everyday use; it names one for SD 1.x and 2.x and one for SDXL."""
    known = set(names(config))
    for taps in _PRACTICAL:
        if known.issuperset(taps):
            return list(taps)
    raise ValueError(
        "the set 'practical' is defined for networks with the layout of SD 1.x, SD 2.x or SDXL, which this "
        "one has not; name its taps one by one, or use the set 'legacy'"
    )


SETS: Mapping[str, Callable[[Config], list[str]]] = {"legacy": _legacy, "practical": _practical}
"""Named sets of taps: set name -> function of a config that gives the taps, in no particular order."""
