"""A preset's feature groups, as an experiment has them: which give convolutional features, which attention features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from pipeline import presets
from pipeline.reproduce.experiment import Experiment
from pipeline.reproduce.options import Options
from schemas.groups import Group
from schemas.spec import ExtractSpec
from schemas.taps import ATTN

BASELINE: Final = "baseline"
"""Name of the plain group."""
_T: Final = 50  # the paper's, everywhere


def own_groups(experiment: Experiment, options: Options) -> ExtractSpec:
    """The preset with the experiment's prompts, and the backbone and image size that the user asks for.

    Tiles are squares as high as the image, half overlapping, as the preset's.
    """
    preset = presets.read(experiment.preset).spec
    changes: dict[str, Any] = {
        "groups": [
            group.model_copy(update={"prompt": experiment.prompts.get(group.name, group.prompt)})
            for group in preset.groups
            if group.name not in experiment.left_out
        ]
    }
    if options.image_size is not None:
        changes["image_size"] = options.image_size
    if options.image_size is not None and preset.tiles is not None:
        side = min(options.image_size)
        changes["tiles"] = preset.tiles.model_copy(update={"size": [side, side], "overlap": side // 2})
    if options.backbone is not None:
        source = {"source": options.backbone, "revision": options.revision}
        changes["backbone"] = preset.backbone.model_copy(update=source)
    return preset.model_copy(update=changes)


def convolutional(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Groups that store more than attention features, without these."""
    return [
        group.model_dump() | {"taps": taps}
        for group in groups
        if (taps := [tap for tap in _taps(group) if _name(tap) != ATTN])
    ]


def attention(groups: Sequence[Group]) -> list[dict[str, Any]]:
    """Groups that store attention features, without what else they store; those that do are named NAME-attn."""
    return [
        group.model_dump()
        | {"taps": [ATTN], "name": group.name + (f"-{ATTN}" if len(_taps(group)) > 1 else "")}
        for group in groups
        if has_attention(group)
    ]


def has_attention(group: Group) -> bool:
    """Whether a group stores attention features."""
    return any(_name(tap) == ATTN for tap in _taps(group))


def baseline(groups: Sequence[Group], prompt: str) -> dict[str, Any]:
    """One plain group of the taps that the others store, but for attention features.

    It is what DDPM-segmentation (pixel classifiers), DIFT (nearest neighbours) and VPD (a decoder) have in common: the
    decoder features of one noisy image, without more. It is none of them: their networks, layers, times and prompts
    differ, and the paper's figures for such methods are of their own code.
    """
    return {"name": BASELINE, "prompt": prompt, "t": _T, "taps": convolutional(groups)[0]["taps"]}


def filled_in(
    groups: Sequence[Mapping[str, Any]], loras: Mapping[str, str], options: Options
) -> list[dict[str, Any]]:
    """Groups with the files that a preset leaves to be filled in.

    Args:
        groups: as a spec has them.
        loras: a file by the preset's name for it.
        options: the user's ControlNet, if any.
    """
    return [
        {**group, "techniques": [_filled_in(one, loras, options) for one in group["techniques"]]}
        for group in groups
    ]


def _filled_in(technique: Mapping[str, Any], loras: Mapping[str, str], options: Options) -> dict[str, Any]:
    if technique["type"] == "lora":
        return {**technique, "source": loras[technique["source"]]}
    if technique["type"] == "controlnet" and options.controlnet is not None:
        return {**technique, "source": options.controlnet, "revision": options.controlnet_revision}
    return dict(technique)


def _taps(group: Group) -> list[Any]:
    """As a list, single ones as a spec has them."""
    return [
        tap if isinstance(tap, str) else tap.model_dump()
        for tap in ([group.taps] if isinstance(group.taps, str) else group.taps)
    ]


def _name(tap: Any) -> str:
    return tap if isinstance(tap, str) else str(tap["name"])
