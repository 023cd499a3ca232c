"""Which modules a LoRA file means: every layer's path, in all spellings that are in use.

kohya writes underscores for dots, and for SDXL the names of Stability's own code; old diffusers files shorten the
attention's projections; since transformers 5 a CLIP text encoder's layers are no longer under `text_model`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from pipeline.techniques.lora_files import NETWORK, LoraFile, Site, some

Place = tuple[str, str]
"""Part of the backbone (`NETWORK` or a text encoder's component) and path of a module in it."""

_IN_BLOCK = re.compile(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
_IN_MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)")
_IN_RESNET = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_ENDS = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_MADE_FOR = ("ss_base_model_version", "modelspec.architecture")
"""Metadata in which trainers say it."""
_BY_TEXT_WIDTH = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "SDXL"}


def locate(file: LoraFile, parts: Mapping[str, nn.Module], backbone: str) -> dict[Site, Place]:
    """The module that each layer of a file means, from shapes alone.

    Args:
        file: whose header is read.
        parts: of the backbone, on any device, `meta` as well.
        backbone: what it is, for the message.

    Raises:
        ValueError: some layers are not in the backbone, or have other shapes there.
    """
    tables = {part: spellings(module) for part, module in parts.items()}
    found: dict[Site, Place] = {}
    missing, misfits = [], []
    for site, change in file.changes("meta").items():
        path = tables.get(site.part, {}).get(site.name)
        if path is None:
            missing.append(site.name if site.part == NETWORK else f"{site.part}.{site.name}")
            continue
        weight: Any = parts[site.part].get_submodule(path).weight
        try:
            shape = change.product().shape
        except RuntimeError:  # factors that do not fit one another
            misfits.append(f"{site.name!r} has factors that do not fit one another")
            continue
        if shape[0] != weight.shape[0] or shape.numel() != weight.numel():
            misfits.append(f"{site.name!r} changes {list(shape)}, the backbone has {list(weight.shape)}")
            continue
        if (site.part, path) in found.values():
            raise ValueError(f"{file.subject} names the layer {path!r} twice, in two spellings")
        found[site] = (site.part, path)
    if missing or misfits:
        faults = [f"{len(missing)} are not in the backbone, such as {some(missing)}"] if missing else []
        faults += [f"{len(misfits)} have other shapes: {misfits[0]}"] if misfits else []
        raise ValueError(
            f"{file.subject} was made for {_made_for(file)} and does not fit the backbone, a {backbone}: of its"
            f" {len(file.sites)} layers {'; '.join(faults)}. Take one that was trained for this backbone"
        )
    return found


def spellings(root: nn.Module) -> dict[str, str]:
    """Every name that a file may have for a linear or convolutional layer -> its path in `root`."""
    layers = [path for path, module in root.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    per_level = getattr(getattr(root, "config", None), "layers_per_block", None)
    with_attention = {path.split(".attentions.")[0] for path in layers if ".attentions." in path}
    names: dict[str, str] = {}
    for path in layers:
        spelled = [path, *_of_attention(path), *_of_text_encoder(path)]
        if isinstance(per_level, int):
            spelled += _of_stability(path, per_level, with_attention)
        for name in spelled:
            for one in (name, name.replace(".", "_")):
                assert names.setdefault(one, path) == path, one
    return names


def _of_attention(path: str) -> Iterator[str]:
    """As of files from before diffusers used PEFT: to_out for to_out.0."""
    if path.endswith(".to_out.0"):
        yield path.removesuffix(".0")


def _of_text_encoder(path: str) -> Iterator[str]:
    """With and without the level that transformers 5 dropped, and with the UNet's names of the projections."""
    if ".self_attn." not in path and ".mlp." not in path:
        return
    short = path.removeprefix("text_model.")
    old = re.sub(r"self_attn\.(q|k|v|out)_proj", r"self_attn.to_\1", short)
    yield from {short, f"text_model.{short}", old, f"text_model.{old}"} - {path}


def _of_stability(path: str, per_level: int, with_attention: set[str]) -> Iterator[str]:
    """The UNet's names in the code that Stable Diffusion was published with: blocks are counted throughout."""
    if path in _ENDS:
        yield _ENDS[path]
    elif match := _IN_MIDDLE.fullmatch(path):
        kind, index, rest = match[1], int(match[2]), match[3]
        place = 2 * index if kind == "resnets" else 2 * index + 1
        yield f"middle_block.{place}.{_IN_RESNET.get(rest, rest)}"
    elif match := _IN_BLOCK.fullmatch(path):
        stage, level, kind, index, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
        units = per_level + 1  # up: a resnet more than down, where a downsampler is a block of its own
        if kind == "downsamplers" and rest == "conv":
            yield f"input_blocks.{units * (level + 1)}.0.op"
        elif kind == "upsamplers" and rest == "conv":
            place = 1 + (f"up_blocks.{level}" in with_attention)
            yield f"output_blocks.{units * level + per_level}.{place}.conv"
        elif kind in ("resnets", "attentions"):
            block = units * level + index
            head = f"input_blocks.{1 + block}" if stage == "down" else f"output_blocks.{block}"
            inner = f"0.{_IN_RESNET.get(rest, rest)}" if kind == "resnets" else f"1.{rest}"
            yield f"{head}.{inner}"


def _made_for(file: LoraFile) -> str:
    """What a file was trained for: as it says, or as the width of the text that its UNet reads shows."""
    for key in _MADE_FOR:
        if key in file.metadata:
            return repr(file.metadata[key])
    for site, change in file.changes("meta").items():
        if site.part == NETWORK and re.search(r"attn2[._]to_k$", site.name):
            width = change.factors["down" if "down" in change.factors else "hada_w1_b"].shape[1]
            return _BY_TEXT_WIDTH.get(width, f"a network that reads text of width {width}")
    return "another network"
