"""LoRA: low-rank changes of the weights of the network and its text encoders, merged while they are in force.

A layer's weight is exchanged for W + sum of scale * alpha / rank * (B A), which is computed in float32 from the
backbone's own W, and exchanged back. So a pass costs what it costs without, no module is wrapped, all formats end in
the same few lines, and what was taken out leaves no trace. The changed layers are in memory twice meanwhile.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from pipeline import checkpoint, sources
from pipeline.backbone import Backbone
from pipeline.meta import on_meta
from pipeline.techniques.base import Technique
from pipeline.techniques.lora_files import NETWORK, Change, LoraFile
from pipeline.techniques.lora_layers import Place, locate
from schemas import techniques as specs

_MERGER = "<lora>"
"""Where a backbone keeps its `_Merger`."""


class Lora(Technique[specs.Lora]):
    """The changes in one file, read once for a backbone."""

    changes_weights = True

    def __init__(self, spec: specs.Lora, backbone: Backbone) -> None:
        super().__init__(spec, backbone)
        path = sources.file(spec.source, subject="lora")
        if str(path) not in backbone.extras:
            file = LoraFile(path, spec.source)
            parts = {NETWORK: backbone.network, **backbone.encoders}
            places = locate(file, parts, type(backbone).__name__)
            changes = file.changes(backbone.device)
            backbone.extras[str(path)] = {place: changes[site] for site, place in places.items()}
        self.changes: dict[Place, Change] = backbone.extras[str(path)]
        """By part and module path."""
        self._merger: _Merger = backbone.extras.setdefault(_MERGER, _Merger(backbone))

    @classmethod
    def check(cls, spec: specs.Lora, family: type[Backbone], folder: Path) -> dict[str, str]:
        path = sources.file(spec.source, subject="lora")
        file = LoraFile(path, spec.source)
        named = {site.part for site in file.sites}
        parts = {part: _skeleton(family, folder, part) for part in named if _has(family, folder, part)}
        locate(file, parts, checkpoint.pipeline_class(folder))
        files = {"lora/weights": checkpoint.sha256(path)}
        if file.config_path is not None:
            files[f"lora/{file.config_path.name}"] = checkpoint.sha256(file.config_path)
        return files

    def attach(self) -> None:
        self._merger.add(self)

    def detach(self) -> None:
        self._merger.remove(self)


class _Merger:
    """A backbone's weights, with the changes that are in force."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self._active: list[Lora] = []
        self._own: WeakKeyDictionary[nn.Module, Tensor] = WeakKeyDictionary()
        """Of each changed layer, the weight as it was loaded; gone with the layer when text encoders are dropped."""

    def add(self, lora: Lora) -> None:
        """Put a file's changes in force, beside those that are."""
        self._active.append(lora)
        self._active.sort(key=lambda one: one.spec.model_dump_json())  # so that sums do not depend on history
        self._renew(lora)

    def remove(self, lora: Lora) -> None:
        """Take them out of force."""
        self._active.remove(lora)
        self._renew(lora)

    @torch.inference_mode(False)
    @torch.no_grad()
    def _renew(self, lora: Lora) -> None:
        """Give every layer that a file changes the weight that is due now."""
        for place in lora.changes:
            module = self._module(place)
            if module is None:  # a text encoder that is no longer needed
                continue
            changes = [(one.changes[place], one.spec.scale) for one in self._active if place in one.changes]
            own = self._own.setdefault(module, module.weight.data)
            if changes:
                merged = own.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
                for change, scale in changes:
                    change.add_to(merged, scale)
                module.weight.data = merged.to(own.dtype)
            else:
                module.weight.data = self._own.pop(module)

    def _module(self, place: Place) -> Any:
        part, path = place
        root: nn.Module | None = (
            self._backbone.network if part == NETWORK else self._backbone.encoders.get(part)
        )
        return None if root is None else root.get_submodule(path)


def _has(family: type[Backbone], folder: Path, part: str) -> bool:
    return part == NETWORK or (part in family.text_encoders and (folder / part).is_dir())


@functools.lru_cache
def _skeleton(family: type[Backbone], folder: Path, part: str) -> nn.Module:
    """A component without weights; kept, since several groups' files may be checked against it."""
    if part == NETWORK:
        network: nn.Module = on_meta(family.network_class, checkpoint.config(folder, family.network_part))
        return network
    kind = family.text_encoders[part]
    with torch.device("meta"):
        encoder: nn.Module = kind(kind.config_class.from_dict(checkpoint.config(folder, part)))
    return encoder
