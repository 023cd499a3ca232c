"""Images to stored diffusion features, and back to a reader.

`FeatureStore`, `FeatureDataset` and `FeatureExtractor` are the public entry points; the README shows them at work.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.dataset import FeatureDataset
    from pipeline.extractor import FeatureExtractor
    from pipeline.reader import FeatureStore

__all__ = ["FeatureDataset", "FeatureExtractor", "FeatureStore"]

_HOMES = {
    "FeatureDataset": "pipeline.dataset",
    "FeatureExtractor": "pipeline.extractor",
    "FeatureStore": "pipeline.reader",
}


def __getattr__(name: str) -> Any:
    """Imported when first used: reading a store must not wait for diffusers."""
    if name not in _HOMES:
        raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
