"""From an experiment and a user's options to the specs of the jobs, in a work folder:

    WORK/
      reproduce.json       the options
      shards/              `gatehouse shard --dataset`
      specs/*.yaml         the specs of all jobs that follow
      lora/                `gatehouse train-lora`
      gate/                `gatehouse gate`, with the option `gate`
      features/            `gatehouse extract`
      heads/NAME/          `gatehouse train-head`, a head each
      table.md, table.json

Specs name all of it by absolute paths, so each can be run from anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from pipeline.reproduce.experiment import Experiment
from pipeline.reproduce.groups import (
    BASELINE,
    attention,
    baseline,
    convolutional,
    filled_in,
    has_attention,
    own_groups,
)
from pipeline.reproduce.options import Options
from schemas.gate import GateSpec
from schemas.head import HeadSpec
from schemas.lora import MODERATE, OVERFITTED, LoraSpec
from schemas.spec import Backbone, ExtractSpec
from schemas.taps import ATTN

GATE: Final = "gate"
"""Heads on the paper's groups, or on those that GATE selected; those on the baseline's group are called as it is."""
SHARD_SIZE: Final = 100
"""Images a shard: enough for every actor of a cluster to have some."""

_QUICK_LORA: Final = {"steps": 10, "samples": None}
_QUICK_GATE: Final = {"images": 4, "times": [50], "img2img": None}
_QUICK_HEADS: Final[Mapping[str, Mapping[str, Any]]] = {
    "label-scarce": {"steps": 50, "members": 3},
    "correspondence": {"steps": 20},
    "segmentation": {"steps": 20, "width": 64},
}
_QUICK_SPLITS: Final = {"count": 2, "train": 10}


def lora_spec(experiment: Experiment, options: Options, work: str) -> LoraSpec:
    """Two LoRAs of 30 training images, with the defaults of the LoRA job, which are the paper's."""
    paper = own_groups(experiment, options)
    document: dict[str, Any] = {
        "version": 1,
        "lora": f"{work}/lora",
        "input": _input(work, options, [experiment.train]),
        **_one_pass(paper),
        "prompt": experiment.prompt,
        "backbone": {"source": paper.backbone.source, "revision": paper.backbone.revision},
        "gradient_checkpointing": paper.tiles is not None,  # large images
    }
    return LoraSpec.model_validate(document | (_QUICK_LORA if options.quick else {}))


def gate_spec(experiment: Experiment, options: Options, work: str) -> GateSpec:
    """GATE with the paper's feature groups as candidates; groups that differ in their seed alone are one."""
    paper = own_groups(experiment, options)
    candidates: dict[str, dict[str, Any]] = {}
    for group in filled_in(convolutional(paper.groups), _loras(work), options):
        steered = {"prompt": group["prompt"], "techniques": group["techniques"]}
        candidates.setdefault(repr(steered), {"name": group["name"], **steered})
    document: dict[str, Any] = {
        "version": 1,
        "out": f"{work}/gate",
        "input": _input(work, options, [experiment.train]),
        **_one_pass(paper),
        "backbone": _backbone(paper.backbone, options),
        "taps": baseline(paper.groups, experiment.prompt)["taps"],
        "prompt": experiment.prompt,
        "candidates": list(candidates.values()),
        "most_groups": len(candidates),
    }
    return GateSpec.model_validate(document | (_QUICK_GATE if options.quick else {}))


def extract_spec(
    experiment: Experiment, options: Options, work: str, selected: Sequence[dict[str, Any]] | None = None
) -> ExtractSpec:
    """The paper's feature groups and the baseline's.

    Args:
        experiment, options: what and how.
        work: absolute path of the work folder.
        selected: by GATE, in place of the paper's groups but for their attention features.
    """
    paper = own_groups(experiment, options)
    if selected is None:
        groups = filled_in([group.model_dump() for group in paper.groups], _loras(work), options)
    else:
        groups = [*selected, *filled_in(attention(paper.groups), _loras(work), options)]
    document = paper.model_dump() | {
        "store": options.store or f"{work}/features",
        "input": _input(work, options, [experiment.train, experiment.test]),
        "backbone": _backbone(paper.backbone, options),
        "groups": [*groups, baseline(paper.groups, experiment.prompt)],
    }
    return ExtractSpec.model_validate(document)


def head_specs(
    experiment: Experiment, options: Options, work: str, extracted: ExtractSpec
) -> dict[str, HeadSpec]:
    """By name, `baseline` and `gate`, with the experiment's own name of the head behind it where it has several.

    Args:
        experiment, options: what and how.
        work: absolute path of the work folder.
        extracted: the spec of the features.
    """
    others = [group for group in extracted.groups if group.name != BASELINE]
    features = {
        BASELINE: {"groups": [BASELINE]},
        GATE: {
            "groups": [str(group["name"]) for group in convolutional(others)],
            "attention": [f"{group.name}/{ATTN}" for group in others if has_attention(group)],
        },
    }
    return {
        head_name(kind, head): _head(experiment, options, work, extracted.store, kind, head, chosen)
        for head in experiment.heads
        for kind, chosen in features.items()
    }


def head_name(kind: str, head: str) -> str:
    """Of a head's spec and folder."""
    return f"{kind}-{head}" if head else kind


def _head(
    experiment: Experiment,
    options: Options,
    work: str,
    store: str,
    kind: str,
    head: str,
    features: Mapping[str, Any],
) -> HeadSpec:
    task, splits = dict(experiment.heads[head]), dict(experiment.splits)
    labels: dict[str, Any] = {"root": f"{work}/shards"}
    if options.quick:
        task |= _QUICK_HEADS[task["type"]]
        splits |= _QUICK_SPLITS if splits["type"] == "random" else {}
        labels |= {"bad": "skip"}  # pairs of images in shards that are left out
    document = {
        "version": 1,
        "head": f"{work}/heads/{head_name(kind, head)}",
        "store": store,
        "labels": labels,
        "features": features,
        "task": task,
        "splits": splits,
    }
    return HeadSpec.model_validate(document)


def _one_pass(paper: ExtractSpec) -> dict[str, Any]:
    """What one pass sees of a picture: all of it, or a tile at the picture's own scale."""
    if paper.tiles is None:
        return {"image_size": paper.image_size, "fit": paper.fit}
    return {"image_size": paper.tiles.size, "fit": "crop"}


def _input(work: str, options: Options, splits: Sequence[str]) -> dict[str, Any]:
    which = "000000" if options.quick else "*"
    shards = [f"{work}/shards/{split}-{which}.tar" for split in splits]
    return {"shards": shards, "root": f"{work}/shards", "caption_field": None}


def _backbone(paper: Backbone, options: Options) -> dict[str, Any]:
    return paper.model_dump() | {"dtype": options.dtype}


def _loras(work: str) -> dict[str, str]:
    """Files by the names that presets have for them."""
    return {
        "./lora-a.safetensors": f"{work}/lora/{MODERATE}.safetensors",
        "./lora-b.safetensors": f"{work}/lora/{OVERFITTED}.safetensors",
    }
