"""A feature group as the engine runs it: everything that its spec leaves to the backbone, resolved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from pipeline import attn
from pipeline.backbone import Backbone
from pipeline.batch import Batch
from pipeline.techniques.base import Technique
from pipeline.techniques.starts import Noise
from pipeline.tiles import alignment
from schemas.groups import Group
from schemas.receipts import ArrayLayout
from schemas.spec import ExtractSpec
from schemas.techniques import Average, Guidance

_NOT_IN_PASSES = {"name", "taps", "per_image_attention", "t", "timestep", "text_windows"}
"""What of a group its passes do not depend on, or not beyond what the recipe resolved."""


@dataclass(frozen=True, eq=False)
class Recipe:
    """A feature group, ready to be computed."""

    group: Group
    start: Noise
    timestep: int
    """That the network sees in the recorded pass."""
    windows: int
    """Of the prompt's encoding."""
    steering: tuple[Technique[Any], ...]
    """Techniques that change what the network computes."""

    @cached_property
    def key(self) -> str:
        """All that affects the passes: groups with equal keys share theirs, whatever taps they store."""
        own = self.group.model_dump_json(exclude=_NOT_IN_PASSES)
        return f"{self.timestep} {self.windows} {own}"

    @cached_property
    def weights(self) -> tuple[str, ...]:
        """The techniques whose weights must be attached."""
        return tuple(one.spec.model_dump_json() for one in self.steering if one.changes_weights)

    @property
    def guidance(self) -> Guidance | None:
        """Classifier-free guidance, if the group has it."""
        return next((one for one in self.group.techniques if isinstance(one, Guidance)), None)

    @property
    def seeds(self) -> list[int]:
        """Of the draws that the group averages over: its own, and those that follow."""
        count = next((one.seeds for one in self.group.techniques if isinstance(one, Average)), 1)
        return [self.group.seed + place for place in range(count)]

    @property
    def prompts(self) -> list[str]:
        """The group's prompt, and what guidance leads away from."""
        return [self.group.prompt, *([self.guidance.negative_prompt] if self.guidance else [])]

    def network_calls(self, backbone: Backbone) -> int:
        """Calls of the network that one image takes."""
        per_pass = 1 + self.start.calls(backbone.schedule)
        return per_pass * len(self.seeds) * len(self.prompts)


class Tiling(NamedTuple):
    """How large pictures are cut, as `pipeline.tiles` takes it."""

    image: tuple[int, int]
    tile: tuple[int, int]
    overlap: int
    step: int


def tiling_of(spec: ExtractSpec, arrays: Sequence[ArrayLayout], latents: tuple[int, int, int]) -> Tiling:
    """A spec's tiles, in whole cells of every map and of the latents [c, h, w].

    Raises:
        ValueError: sizes that cannot be cut so.
    """
    assert spec.tiles is not None
    image, tile = (spec.image_size[0], spec.image_size[1]), (spec.tiles.size[0], spec.tiles.size[1])
    grids = {(array.shape[1], array.shape[2]) for array in arrays} | {latents[1:]}
    return Tiling(image, tile, spec.tiles.overlap, alignment(image, sorted(grids)))


def attn_sources(group: Group, config: Mapping[str, Any]) -> list[str]:
    """The maps that a group's `attn` is made of."""
    asked = group.asked("attn")
    choices: dict[str, Any] = {"stages": asked.stages, "strides": asked.strides}
    return attn.sources(config, **{name: value for name, value in choices.items() if value is not None})


def windows(group: Group, family: type[Backbone], folder: Path) -> int:
    """Windows that a group's prompts are encoded in: as asked, or what its fixed prompts need."""
    if group.text_windows is not None:
        return group.text_windows
    negative = [one.negative_prompt for one in group.techniques if one.type == "guidance"]
    fixed = [*([] if group.varies else [group.prompt]), *negative]
    return max([1, *(family.windows(folder, prompt) for prompt in fixed)])


def missing(group: Group, batch: Batch) -> list[str | None]:
    """Why a group cannot be computed in a slot: a text or a control image that the sample lacks."""
    reasons: list[str | None] = [None] * len(batch.ids)
    fields = [one.field for one in group.techniques if one.type == "controlnet" and one.field]
    for slot, sample in enumerate(batch.ids):
        if sample is None:
            continue
        for name in group.placeholders:
            if batch.texts[name][slot] is None:
                found = batch.text_reasons.get(name, [None] * len(batch.ids))[slot]
                reasons[slot] = reasons[slot] or found or f"no-{name.partition(':')[0]}"
        for field in fields:
            reasons[slot] = reasons[slot] or batch.field_reasons[field][slot]
    return reasons
