"""Versions of what computes, for the record; a module of its own, since who asks need not load any of it."""

from __future__ import annotations

import importlib.metadata
import platform

import cv2

_LIBRARIES = ("torch", "diffusers", "transformers", "numpy", "pillow", "zarr", "safetensors")


def libraries() -> dict[str, str]:
    """Versions of everything that touches a value."""
    versions = {name: importlib.metadata.version(name) for name in _LIBRARIES}
    return {"python": platform.python_version(), **versions, "opencv": cv2.__version__}
