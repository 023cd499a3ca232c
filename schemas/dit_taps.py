"""The taps of diffusion transformers: PixArt-Alpha and -Sigma, SD3, FLUX.1, Hunyuan-DiT.

They extend the scheme of the UNets. Tokens of the image are folded back to their grid [C, h, w]; those of the
prompt are left out.

    dit-in, dit-out              the network's input and output, as latents
    dit-after-embed              after the patch embedding, with the position embedding that it adds
    vit-blockI-norm              what self-attention reads: the block's first normalisation, modulated (AdaLN)
    vit-blockI-self-q, -k, -v    projections before the split into heads, and before norms and rotation of heads
    vit-blockI-self-map          softmax attention of the image to itself
    vit-blockI-cross-q           projection of cross-attention (PixArt, Hunyuan-DiT; else `self-q` serves both)
    vit-blockI-cross-map         softmax attention of the image to the prompt
    vit-blockI-dual-q, ...-map   second self-attention, of the image alone, in some blocks of SD 3.5
    vit-blockI-ffn-inner         after the first feed-forward layer with its activation
    vit-blockI-out               the block's output

SD3 and FLUX attend to image and prompt in one softmax: there `self-map` and `cross-map` are its two parts, and a
row of both together sums to 1. FLUX has blocks with two streams and then blocks with one, numbered in one count (19
and 38 in FLUX.1); the latter compute their feed-forward layer beside the attention, so their `ffn-inner` comes
before `self-q`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

Config = Mapping[str, Any]
Sites = Callable[[Config, int], tuple[str, ...]]

_SELF = ("self-q", "self-k", "self-v", "self-map")
_DUAL = ("dual-q", "dual-k", "dual-v", "dual-map")


def _cross(config: Config, index: int) -> tuple[str, ...]:
    return ("norm", *_SELF, "cross-q", "cross-map", "ffn-inner", "out")


def _sd3(config: Config, index: int) -> tuple[str, ...]:
    dual = _DUAL if index in config.get("dual_attention_layers", ()) else ()
    return ("norm", *_SELF, "cross-map", *dual, "ffn-inner", "out")


def _flux(config: Config, index: int) -> tuple[str, ...]:
    if index < config["num_layers"]:
        return ("norm", *_SELF, "cross-map", "ffn-inner", "out")
    return ("norm", "ffn-inner", *_SELF, "cross-map", "out")


_SITES: dict[str, Sites] = {
    "PixArtTransformer2DModel": _cross,
    "SD3Transformer2DModel": _sd3,
    "FluxTransformer2DModel": _flux,
    "HunyuanDiT2DModel": _cross,
}
NETWORKS = tuple(_SITES)
"""Class names of the transformers whose taps have names."""


def class_name(config: Config) -> str | None:
    """The class that loads a config: PixArt's checkpoints still name an older one."""
    found: str | None = config.get("_class_name")
    if found == "Transformer2DModel" and config.get("norm_type") == "ada_norm_single":
        return "PixArtTransformer2DModel"
    return found


def names(config: Config) -> list[str]:
    """Every tap, in the order in which the network computes them.

    Raises ValueError for a config without its number of layers.
    """
    return ["dit-in", "dit-after-embed", *_blocks(config), "dit-out"]


def depth(config: Config) -> int:
    """Number of blocks, of all kinds."""
    if "num_layers" not in config:
        raise ValueError(f"the config of a {class_name(config)} has no num_layers")
    return int(config["num_layers"]) + int(config.get("num_single_layers", 0))


def patch(config: Config) -> int:
    """Latents a token, along each side. FLUX's are packed before they reach the network."""
    return 2 if class_name(config) == "FluxTransformer2DModel" else int(config["patch_size"])


def _blocks(config: Config) -> Iterator[str]:
    sites = _SITES[str(class_name(config))]
    for index in range(depth(config)):
        yield from (f"vit-block{index}-{site}" for site in sites(config, index))


def _middle(config: Config) -> list[str]:
    """The modulated normalisation in the block half way: FLUX.1's block 28, PixArt's 14.

    Outputs of blocks have a few channels far larger than the others, which this normalisation removes (DiTF).
    """
    return [f"vit-block{depth(config) // 2}-norm"]


SETS: Mapping[str, Callable[[Config], list[str]]] = {"middle": _middle}
