"""Images to stored diffusion features, and back to a reader.

`FeatureStore`, `FeatureDataset`, `PooledDataset`, `FeatureLoader` and `FeatureExtractor` are the public entry points;
the README shows them at work.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.dataset import FeatureDataset, PooledDataset
    from pipeline.extractor import FeatureExtractor
    from pipeline.loader import FeatureLoader
    from pipeline.reader import FeatureStore

__all__ = ["FeatureDataset", "FeatureExtractor", "FeatureLoader", "FeatureStore", "PooledDataset"]

_HOMES = {
    "FeatureDataset": "pipeline.dataset",
    "FeatureExtractor": "pipeline.extractor",
    "FeatureLoader": "pipeline.loader",
    "FeatureStore": "pipeline.reader",
    "PooledDataset": "pipeline.dataset",
}


def __getattr__(name: str) -> Any:
    """Imported when first used: reading a store must not wait for diffusers."""
    if name not in _HOMES:
        raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
