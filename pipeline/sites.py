"""Where in a network each tap is: the module to hook, what to take there, and the grid that its tokens lie on."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from schemas import dit_taps
from schemas.taps import as_map

Grid = tuple[int, int]
"""Rows and columns of tokens."""


@dataclass(frozen=True)
class Site:
    """A module, and what is taken there."""

    path: str
    """Of the module; the network itself is ''."""
    takes: Literal["input", "output", "map"] = "output"
    """The first argument, the output, or the attention map of queries and keys that the module projects."""
    element: int = 0
    """Of an output that is a tuple."""
    grid: str | None = None
    """Path of the module whose call says which grid the tokens [B, h w, C] lie on; None where there is a map."""
    keys: Literal["image", "text", "all"] = "all"
    """Of an attention map: the keys that are kept of the softmax."""
    packed: bool = False
    """Whether a token is 2 x 2 latents, to be laid out again."""


def locate(tap: str, config: Mapping[str, Any]) -> Site:
    """The site of a tap that `schemas.taps.names` lists, or of a map made from one."""
    found = as_map(tap)
    name = tap if found is None else found.site
    network = dit_taps.class_name(config)
    return _in_transformer(name, config) if network in dit_taps.NETWORKS else _in_unet(name, config)


def grid_of(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Grid:
    """The grid of tokens of a call of a `Site.grid` module: a transformer in a UNet, or the whole network."""
    bound = inspect.signature(module.forward).bind(*args, **kwargs).arguments
    states: Tensor = bound["hidden_states"]
    if states.ndim == 4:  # [B, C, h, w]
        patch = getattr(module, "pos_embed", None)
        side = 1 if patch is None else patch.patch_size
        return states.shape[2] // side, states.shape[3] // side
    places: Tensor = bound["img_ids"].flatten(0, -2)  # FLUX's position ids [h w, 3]: 0, row, column
    grid = int(places[:, 1].max()) + 1, int(places[:, 2].max()) + 1
    if grid[0] * grid[1] != states.shape[1]:
        raise ValueError(
            f"img_ids name a grid of {grid[0]} x {grid[1]}, and hidden_states have {states.shape[1]} tokens; taps are"
            " recorded of one image, without others beside it"
        )
    return grid


_NAME = re.compile(r"(?:(down|up)-level(\d+)|(mid))(?:-repeat(\d+))?-(.+)")
_ENDS = {
    "unet-in": Site("conv_in", "input"),
    "unet-after-conv-in": Site("conv_in"),
    "unet-out": Site("conv_out"),
}
_IN_UNIT = {  # site of a level -> module within the block, {} being the repeat
    "res-increment": "resnets.{}.conv2",
    "res-out": "resnets.{}",
    "vit-out": "attentions.{}",
    "downsampler-out": "downsamplers.0",
    "upsampler-out": "upsamplers.0",
}
_IN_BLOCK = {  # site of a transformer block -> module within it
    "self-q": ".attn1.to_q",
    "self-k": ".attn1.to_k",
    "self-v": ".attn1.to_v",
    "self-map": ".attn1",
    "cross-q": ".attn2.to_q",
    "cross-map": ".attn2",
    "ffn-inner": ".ff.net.0",
    "out": "",
}
_IN_LAYER = {"self-q": ".to_q", "self-k": ".to_k", "self-v": ".to_v", "cross-q": ".to_q"}


def _in_unet(name: str, config: Mapping[str, Any]) -> Site:
    if name in _ENDS:
        return _ENDS[name]
    match = _NAME.fullmatch(name)
    assert match, name  # names come from the vocabulary
    stage, level, mid, repeat, site = match.groups()
    block = "mid_block" if mid else f"{stage}_blocks.{level}"
    unit = repeat or "0"  # the mid block's attention has no repeat
    if site in _IN_UNIT:
        return Site(f"{block}.{_IN_UNIT[site].format(unit)}")
    index, site = site.removeprefix("vit-block").split("-", 1)
    attention = f"{block}.attentions.{unit}"
    types = config["mid_block_type"] if mid else config[f"{stage}_block_types"][int(level)]
    if "Simple" in types:  # DeepFloyd IF's: an attention layer, no transformer
        return _in_attention(attention, site, _IN_LAYER, "text", attention)
    return _in_attention(f"{attention}.transformer_blocks.{index}", site, _IN_BLOCK, "all", attention)


def _in_attention(
    block: str, site: str, modules: Mapping[str, str], text: Literal["text", "all"], grid: str
) -> Site:
    path = block + modules.get(site, "")
    if not site.endswith("-map"):
        return Site(path, grid=grid)
    return Site(path, "map", grid=grid, keys=text if site == "cross-map" else "image")


_JOINT = {  # SD3's blocks and FLUX's with two streams
    "self-q": ".attn.to_q",
    "self-k": ".attn.to_k",
    "self-v": ".attn.to_v",
    "self-map": ".attn",
    "cross-map": ".attn",
    "dual-q": ".attn2.to_q",
    "dual-k": ".attn2.to_k",
    "dual-v": ".attn2.to_v",
    "dual-map": ".attn2",
    "norm": ".norm1",
    "ffn-inner": ".ff.net.0",
    "out": "",
}
_SINGLE = {**_JOINT, "norm": ".norm", "ffn-inner": ".act_mlp"}  # FLUX's with one
_HUNYUAN = {**_IN_BLOCK, "norm": ".norm1"}


def _in_transformer(name: str, config: Mapping[str, Any]) -> Site:
    network = dit_taps.class_name(config)
    flux = network == "FluxTransformer2DModel"
    if name in ("dit-in", "dit-out"):
        takes: Literal["input", "output"] = "input" if name == "dit-in" else "output"
        return Site("", takes, grid="" if flux else None, packed=flux)
    if name == "dit-after-embed":
        return Site("x_embedder" if flux else "pos_embed", grid="")
    index, site = name.removeprefix("vit-block").split("-", 1)
    block = f"transformer_blocks.{index}"
    if network == "HunyuanDiT2DModel":
        return _in_attention(f"blocks.{index}", site, _HUNYUAN, "all", "")
    if network == "PixArtTransformer2DModel":
        # PixArt modulates between two modules, so its attention's input is hooked.
        return (
            Site(f"{block}.attn1", "input", grid="")
            if site == "norm"
            else _in_attention(block, site, _IN_BLOCK, "all", "")
        )
    if site == "out":
        return Site(_block(config, int(index)), element=1, grid="")  # of (text, image)
    modules = _SINGLE if flux and int(index) >= config["num_layers"] else _JOINT
    return _in_attention(_block(config, int(index)), site, modules, "text", "")


def _block(config: Mapping[str, Any], index: int) -> str:
    doubles = config["num_layers"]
    if index < doubles:
        return f"transformer_blocks.{index}"
    return f"single_transformer_blocks.{index - doubles}"
