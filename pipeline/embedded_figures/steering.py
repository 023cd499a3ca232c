"""The ControlNet and the LoRAs that belong to a backbone: where they lie, and what they were trained on."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import safe_open

from pipeline import embedded, sources
from schemas.lora import MODERATE, OVERFITTED

_CONTROLNET, _LORAS = "controlnet-canny", "loras"
"""Folders beside the embedded backbone."""


def controlnet(given: str | None) -> Path | None:
    """The folder of a ControlNet; of the one that ships where none is given, None if none does.

    Raises:
        ValueError: one is given, and is no folder of a model.
    """
    shipped = Path(embedded.BACKBONE).with_name(_CONTROLNET)
    if given is None and not shipped.is_dir():
        return None
    return sources.component(given or str(shipped), None, subject="controlnet")


def loras(given: str | None) -> dict[str, Path]:
    """The LoRAs in a folder, by their names; those that ship where none is given, maybe none.

    Raises:
        ValueError: a folder is given, and has none.
    """
    folder = Path(given or Path(embedded.BACKBONE).with_name(_LORAS))
    paths = {name: folder / f"{name}.safetensors" for name in (MODERATE, OVERFITTED)}
    found = {name: path for name, path in paths.items() if path.is_file()}
    if given is not None and not found:
        raise ValueError(
            f"loras {given!r}: has neither {MODERATE}.safetensors nor {OVERFITTED}.safetensors; name the folder that"
            " they are in, or none"
        )
    return found


def trained_on(loras: dict[str, Path]) -> set[str]:
    """Images that LoRAs were trained on, as SHARD/KEY with the shard's file name; what the files say of themselves."""
    found = set()
    for path in loras.values():
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("gatehouse", "{}"))
        found |= {"/".join(image.split("/")[-2:]) for image in about.get("images", [])}
    return found
