"""The taps of a UNet2DConditionModel: Stable Diffusion 1.x and 2.x, SDXL, DeepFloyd IF.

Names are the reference extractor's. What follows a residual unit is a transformer, or in IF's blocks a single
attention layer whose keys are prompt and image together: that one is named as a transformer of one block,
without the sites it has not (`cross-q`, `ffn-inner`, `out`), and its two maps are parts of one softmax. Where IF
attends to the prompt alone (`only_cross_attention`), the names are `cross-q` and `cross-map`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

Config = Mapping[str, Any]
Attention = Literal["none", "transformer", "layer"]
"""What follows each residual unit of a block."""

_ATTENTION: dict[str, Attention] = {
    "DownBlock2D": "none",
    "CrossAttnDownBlock2D": "transformer",
    "ResnetDownsampleBlock2D": "none",
    "SimpleCrossAttnDownBlock2D": "layer",
    "UNetMidBlock2D": "none",
    "UNetMidBlock2DCrossAttn": "transformer",
    "UNetMidBlock2DSimpleCrossAttn": "layer",
    "UpBlock2D": "none",
    "CrossAttnUpBlock2D": "transformer",
    "ResnetUpsampleBlock2D": "none",
    "SimpleCrossAttnUpBlock2D": "layer",
}
_TRANSFORMER = ("self-q", "self-k", "self-v", "self-map", "cross-q", "cross-map", "ffn-inner", "out")
_LAYER = ("self-q", "self-k", "self-v", "self-map", "cross-map")
_CROSS_LAYER = ("cross-q", "cross-map")
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


def names(config: Config) -> list[str]:
    """Every tap, in the order in which the network computes them (SD 1.5 has 197, SDXL 612).

    Raises ValueError for blocks without tap names.
    """
    down, middle, up = _block_types(config)
    found = ["unet-in", "unet-after-conv-in"]
    for level, block in enumerate(down):
        found += _level(config, "down", level, block)
        if level < len(down) - 1:
            found.append(f"down-level{level}-downsampler-out")
    if middle is not None:
        found += _mid(config, middle)
    for level, block in enumerate(up):
        found += _level(config, "up", level, block)
        if level < len(up) - 1:
            found.append(f"up-level{level}-upsampler-out")
    return [*found, "unet-out"]


def _block_types(config: Config) -> tuple[list[str], str | None, list[str]]:
    missing = [key for key in ("down_block_types", "up_block_types") if key not in config]
    if missing:
        raise ValueError(f"not the config of a UNet2DConditionModel: it has no {' and no '.join(missing)}")
    down, up = list(config["down_block_types"]), list(config["up_block_types"])
    middle = config.get("mid_block_type", "UNetMidBlock2DCrossAttn")
    for block in [*down, *up, *([] if middle is None else [middle])]:
        if block not in _ATTENTION:
            raise ValueError(
                f"the UNet has blocks of type {block}; taps are known for {', '.join(_ATTENTION)}"
            )
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


def _only_cross(config: Config, stage: Literal["down", "mid", "up"], level: int) -> bool:
    """Whether a level's attention leaves the image out of its keys, as diffusers reads it from a config."""
    given = config.get("only_cross_attention", False)
    if stage == "mid":
        own = config.get("mid_block_only_cross_attention")
        return bool(given if own is None and isinstance(given, bool) else own)
    by_level = [given] * len(config["down_block_types"]) if isinstance(given, bool) else list(given)
    return bool((by_level if stage == "down" else by_level[::-1])[level])


def _level(config: Config, stage: Literal["down", "up"], level: int, block: str) -> Iterator[str]:
    for repeat, depth in enumerate(_depths(config, stage, level)):
        unit = f"{stage}-level{level}-repeat{repeat}"
        yield from _residual(unit)
        yield from _attention(unit, block, depth, _only_cross(config, stage, level))


def _mid(config: Config, block: str) -> Iterator[str]:
    yield from _residual("mid-repeat0")
    if _ATTENTION[block] != "none":
        depth = _depths(config, "mid", len(config["down_block_types"]) - 1)[0]
        yield from _attention("mid", block, depth, _only_cross(config, "mid", 0))
        yield from _residual("mid-repeat1")


def _residual(unit: str) -> Iterator[str]:
    yield f"{unit}-res-increment"
    yield f"{unit}-res-out"


def _attention(unit: str, block: str, depth: int, only_cross: bool) -> Iterator[str]:
    kind = _ATTENTION[block]
    if kind == "none":
        return
    sites = _TRANSFORMER if kind == "transformer" else _CROSS_LAYER if only_cross else _LAYER
    for index in range(depth if kind == "transformer" else 1):
        for site in sites:
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


def _middle(config: Config) -> list[str]:
    """The output of the up level half way: with SD 1.x and 2.x `up-level1-upsampler-out`, which DIFT uses."""
    outputs = _legacy(config)
    return [outputs[(len(outputs) - 1) // 2]]


SETS: Mapping[str, Callable[[Config], list[str]]] = {
    "legacy": _legacy,
    "practical": _practical,
    "middle": _middle,
}
