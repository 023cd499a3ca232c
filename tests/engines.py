"""Specs, engines and batches on the embedded backbone with small pictures, for tests of what is computed."""

from __future__ import annotations

import copy
import functools
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline import embedded, families, sources
from pipeline.backbone import Backbone
from pipeline.batch import Batch
from pipeline.features import Engine
from pipeline.layouts import layouts
from schemas.receipts import ArrayLayout
from schemas.spec import ExtractSpec
from tests.pictures import of_pictures
from tests.tars import pixels

SIDE = 64  # pixels
TAPS = ["down-level0-repeat0-res-out", "mid-vit-block0-cross-q", "up-level1-upsampler-out"]

torch.set_num_threads(1)


def group(name: str = "plain", **fields: Any) -> dict[str, Any]:
    """A group of a spec's document."""
    time = {} if "timestep" in fields else {"t": 50}
    return {"name": name, "prompt": "a photo", "taps": TAPS, **time, **fields}


def make_spec(*groups: dict[str, Any], **fields: Any) -> ExtractSpec:
    """A job on the embedded shards, in memory-sized blocks; `fields` replace top-level keys."""
    document = {
        "version": 1,
        "store": "unused",
        "input": {"shards": "embedded"},
        "image_size": [SIDE, SIDE],
        "backbone": {"batch_size": 4},
        "groups": list(groups) or [group()],
        "cluster": {"device": "cpu"},
        **fields,
    }
    return ExtractSpec.model_validate(document)


@functools.cache
def _loaded(source: str, dtype: str) -> Backbone:
    spec = make_spec(backbone={"source": source}).backbone
    return families.load(sources.locate(spec), dtype=getattr(torch, dtype), device="cpu")


def backbone(source: str = "embedded", dtype: str = "float32") -> Backbone:
    """Loaded once for all tests; its networks are shared, so they must be left as they are."""
    found = copy.copy(_loaded(source, dtype))
    found.encoders = dict(found.encoders)  # an engine drops what it no longer needs
    return found


def make_engine(spec: ExtractSpec) -> Engine:
    """An engine of its own on the shared networks."""
    return Engine(backbone(spec.backbone.source, spec.backbone.dtype), spec, _layouts(spec))


_known: dict[str, list[ArrayLayout]] = {}


def _layouts(spec: ExtractSpec) -> list[ArrayLayout]:
    """Building the network on the meta device takes a second, so it is done once for specs with the same taps."""
    key = spec.model_dump_json(exclude={"groups": {"__all__": {"timestep", "seed"}}, "seed": True})
    if key not in _known:
        _known[key] = layouts(spec, sources.locate(spec.backbone))
    return _known[key]


def make_batch(keys: Sequence[str | None], *, shard: str = "a.tar", side: int = SIDE) -> Batch:
    """A batch with a sample of its own for each key; None for a slot of padding."""
    images = np.zeros((len(keys), 3, side, side), np.uint8)
    for slot, key in enumerate(keys):
        if key is not None:
            images[slot] = pixels(side, side, seed=sum(key.encode())).transpose(2, 0, 1)
    captions = [None if key is None else f"a picture of {key}" for key in keys]
    return of_pictures([None if key is None else (shard, key) for key in keys], images, caption=captions)


def copy_backbone(folder: Path, **scheduler: Any) -> Path:
    """The embedded backbone in another folder, to be changed there; `scheduler` replaces keys of its config."""
    shutil.copytree(embedded.BACKBONE, folder)
    if scheduler:
        config = folder / "scheduler" / "scheduler_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | scheduler))
    return folder
