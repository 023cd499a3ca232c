"""Suppression techniques, a module each; `schemas.techniques` has their fields.

ControlNet, LoRA and IP-Adapter change what the network computes (`Technique`); denoising, inversion and no noise change
what it starts from (`starts`); guidance and averages combine several passes (`pipeline.passes`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.backbone import Backbone
from pipeline.techniques.base import Technique
from pipeline.techniques.controlnet import ControlNet
from pipeline.techniques.ip_adapter import IpAdapter
from pipeline.techniques.lora import Lora
from schemas import techniques as specs

_CLASSES: dict[type, type[Technique[Any]]] = {
    specs.ControlNet: ControlNet,
    specs.Lora: Lora,
    specs.IpAdapter: IpAdapter,
}


def check(
    techniques: Sequence[specs.Technique], family: type[Backbone], folder: Path
) -> list[dict[str, str]]:
    """Before work starts: SHA-256 of every file that each technique will load, by name.

    Raises:
        ValueError: what a technique needs is missing, or does not fit the backbone in `folder`.
    """
    return [
        _CLASSES[type(spec)].check(spec, family, folder) if type(spec) in _CLASSES else {}
        for spec in techniques
    ]


def steers(spec: specs.Technique) -> bool:
    """Whether a technique changes what the network computes, and so has to be loaded."""
    return type(spec) in _CLASSES


def load(spec: specs.Technique, backbone: Backbone) -> Technique[Any]:
    """A technique that `steers`, ready to be used."""
    return _CLASSES[type(spec)](spec, backbone)
