"""What a stored value depends on, and nothing else: the part of a spec that one store holds to for ever."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline import checkpoint
from schemas.receipts import ArrayLayout, Manifest
from schemas.spec import ExtractSpec

METHOD = 1
"""Version of what this code does to a sample (decoding, stretching, noise, packing); raised when a value changes."""

_LIBRARIES = ("torch", "diffusers", "transformers", "numpy", "pillow", "zarr", "safetensors")


class IdentityError(ValueError):
    """A store that holds other features than the spec describes."""


def identity(
    spec: ExtractSpec, folder: Path, timesteps: dict[str, int], arrays: list[ArrayLayout]
) -> dict[str, Any]:
    """Fingerprints, groups, seeds, geometry, dtypes, codec and batch size; not inputs, cluster or limits."""
    return {
        "method": METHOD,
        "backbone": {
            "files": checkpoint.fingerprint(folder),
            "dtype": spec.backbone.dtype,
            "batch_size": spec.backbone.batch_size,
        },
        "image": {
            "size": list(spec.image_size),
            "fields": spec.input.image_fields,
            "caption_field": spec.input.caption_field,
        },
        "seed": spec.seed,
        "groups": [
            {
                "name": group.name,
                "prompt": group.prompt,
                "timestep": timesteps[group.name],
                "seed": group.seed,
                "techniques": list(group.techniques),
                "taps": {array.tap: array.dtype for array in arrays if array.group == group.name},
            }
            for group in spec.groups
        ],
        "output": {
            "maps": spec.output.maps,
            "pooled": spec.output.pooled,
            "codec": "blosc-zstd-bitshuffle",
            "compression_level": spec.output.compression_level,
        },
    }


def check_same(store: str, manifest: Manifest, wanted: dict[str, Any]) -> None:
    """Refuse to mix features of another identity into a store.

    Raises:
        IdentityError: lists every difference.
    """
    differences = list(_differences(manifest.identity, wanted, ""))
    if differences:
        shown = "\n".join(
            f"  {key}: the store has {old!r}, the spec {new!r}" for key, old, new in differences
        )
        raise IdentityError(
            f"store {store} holds other features than this spec describes:\n{shown}\n"
            "Give the spec another store, or put these values back."
        )


def check_backbone(spec: ExtractSpec, manifest: Manifest) -> None:
    """Refuse weights that are not the ones a store was made with.

    Raises:
        IdentityError: the files found here differ.
    """
    if checkpoint.fingerprint(checkpoint.locate(spec.backbone)) != manifest.identity["backbone"]["files"]:
        raise IdentityError(
            f"backbone {spec.backbone.source!r}: the files found on this machine are not those that the store's"
            " features were made with; give it the same files everywhere"
        )


def libraries() -> dict[str, str]:
    """Versions of everything that touches a value."""
    versions = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return {"python": platform.python_version(), **versions}


def _differences(old: Any, new: Any, key: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in dict.fromkeys([*old, *new]):
            yield from _differences(old.get(name), new.get(name), f"{key}.{name}".lstrip("."))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for place, pair in enumerate(zip(old, new, strict=True)):
            yield from _differences(*pair, f"{key}.{place}")
    elif old != new:
        yield key, old, new
