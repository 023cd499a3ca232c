"""What the measurements share: how much is measured, jobs' specs, shards, real features, stores made of them."""

from __future__ import annotations

import functools
import os
import shutil
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline import embedded, families, sources
from pipeline.attempt import Attempt
from pipeline.backbone import Backbone
from pipeline.batches import Assignment, LoadedBatch, Record, ShardEnd, read_batches
from pipeline.blocks import BlockAssembler
from pipeline.features import Engine, Features, GroupTap, make_engine
from pipeline.plan import Plan, make_plan
from pipeline.shards import Shard
from pipeline.store import open_store
from schemas.receipts import Manifest
from schemas.spec import ExtractSpec

PLAIN = {"name": "plain", "prompt": "a photo", "t": 50, "taps": "legacy"}
CAPTION = {"name": "caption", "prompt": "{caption}", "t": 50, "taps": "legacy"}
REQUESTS = 16
"""Simultaneous storage requests, ours and the baseline's."""


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    repeats: int
    """Of storage measurements."""
    worker_repeats: int
    worker_images: int
    """Through a `Worker` in this process."""
    job_repeats: int
    actors: tuple[int, ...]
    """Numbers of actors to run the whole job with."""
    images_per_actor: int
    """Of the whole job; long enough for a steady rate."""
    features: int
    """Real images whose features the storage measurements use."""
    rows: int
    """Of the store that is read."""
    reads: int
    """Random rows."""
    big_rows: int
    """Rows as large as those of Stable Diffusion 1.5 at 512 px, 11 MB each."""
    vectors: int
    """Rows of the pooled tables."""


_CORES = os.cpu_count() or 1
QUICK = Scale(
    repeats=2,
    worker_repeats=1,
    worker_images=64,
    job_repeats=1,
    actors=(_CORES,),
    images_per_actor=96,
    features=64,
    rows=256,
    reads=128,
    big_rows=8,
    vectors=4096,
)
FULL = Scale(
    repeats=5,
    worker_repeats=3,
    worker_images=256,
    job_repeats=2,
    actors=tuple(sorted({1, _CORES})),
    images_per_actor=512,
    features=256,
    rows=1024,
    reads=1000,
    big_rows=32,
    vectors=32768,
)


class Workbench:
    """A folder to work in, an S3 prefix perhaps, and what is made once for all measurements.

    Args:
        folder: empty, on the disk to be measured.
        s3: URL to write under; None measures local storage only.
        scale: how much.
    """

    def __init__(self, folder: Path, s3: str | None, scale: Scale) -> None:
        self.folder, self.s3, self.scale = folder, s3, scale

    def new_url(self, *, s3: bool = False) -> str:
        """A place where nothing is yet."""
        name = uuid.uuid4().hex[:12]
        return f"{self.s3}/{name}" if s3 else str(self.folder / name)

    def shards(self, images: int) -> str:
        """A folder with the sample shards, under other ids again and again, until there are that many images."""
        folder = self.folder / f"shards-{images}"
        if not folder.exists():
            folder.mkdir(parents=True)
            sources = sorted(Path(embedded.SHARDS).glob("*.tar"))
            for number in range(-(-images // SHARD_IMAGES)):
                shutil.copy(sources[number % len(sources)], folder / f"{number:04d}.tar")
        return f"{folder}/*.tar"

    def spec(self, images: int, groups: Sequence[dict[str, Any]] = (PLAIN,), **cluster: Any) -> ExtractSpec:
        """A job over the sample images with the embedded backbone on the CPU, into a new store."""
        return ExtractSpec.model_validate(
            {
                "version": 1,
                "store": self.new_url(),
                "input": {"shards": self.shards(images)},
                "image_size": [128, 128],
                "groups": list(groups),
                "cluster": {"device": "cpu", "cpus_per_actor": 1, **cluster},
            }
        )

    @functools.cached_property
    def plan(self) -> Plan:
        """Of a job that stores the legacy taps of one group."""
        return make_plan(self.spec(self.scale.features))

    @functools.cached_property
    def features(self) -> dict[GroupTap, NDArray[np.generic]]:
        """Legacy taps of real images, [n, C, h, w] each."""
        engine, batches = engine_of(self.plan), loaded(self.plan)
        parts = [engine.run(item.batch).maps for item in batches][: -(-self.scale.features // 8)]
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        return {name: values[: self.scale.features] for name, values in joined.items()}

    @functools.cached_property
    def big_features(self) -> dict[GroupTap, NDArray[np.generic]]:
        """Rows of the size of Stable Diffusion 1.5's legacy taps at 512 px: noise, which compresses a little worse."""
        shapes = [(1280, 16, 16), (1280, 32, 32), (640, 64, 64), (320, 64, 64)]
        generator = np.random.Generator(np.random.Philox(0))
        names = zip(self.features, shapes, strict=True)
        rows = self.scale.big_rows
        return {
            name: generator.standard_normal((rows, *shape), np.float32).astype(np.float16)
            for name, shape in names
        }

    def manifest(self, features: dict[GroupTap, NDArray[np.generic]]) -> Manifest:
        """Of a store that holds such features, in blocks as a job would have them."""
        layouts = [
            layout.model_copy(update={"shape": list(features[layout.group, layout.tap].shape[1:])})
            for layout in self.plan.manifest.arrays
        ]
        row_bytes = sum(layout.row_bytes for layout in layouts)
        rows = min(256 * 2**20 // row_bytes, len(next(iter(features.values()))))
        return self.plan.manifest.model_copy(
            update={"arrays": layouts, "rows_per_block": rows, "rows_per_extent": rows}
        )

    def attempt(self, url: str, manifest: Manifest, number: int, pool: ThreadPoolExecutor) -> Attempt:
        """An attempt at an imagined shard, in a store that is made if it is not there."""
        manifest = open_store(url, manifest)
        shard = Shard(f"{number:04d}.tar", f"{number:04d}.tar", 1, "1")
        options: dict[str, Any] = {"device": "cpu", "hint": number, "rows_ready": 0, "pool": pool}
        return Attempt(url, manifest, Assignment(shard), **options)

    def store(self, url: str, features: dict[GroupTap, NDArray[np.generic]], rows: int) -> None:
        """Make a store of so many rows: the features, shard after shard, again and again."""
        count = len(next(iter(features.values())))
        manifest = self.manifest(features)
        pooled = {name: values.mean((2, 3), np.float32) for name, values in features.items()}
        with ThreadPoolExecutor(REQUESTS) as pool:
            for number in range(-(-rows // count)):
                kept = min(count, rows - number * count)
                attempt = self.attempt(url, manifest, number, pool)
                assembler = BlockAssembler(manifest.arrays, manifest.rows_per_block, pooled=True)
                records = [Record(place, f"{place:06d}", caption="a scene") for place in range(kept)]
                every = Features(features, pooled, {"plain": [None] * kept})
                for block in [*assembler.add(records, every), *assembler.flush()]:
                    attempt.write(block)
                attempt.commit(assembler, ShardEnd(kept, True))


SHARD_IMAGES = 64
"""In each of the embedded shards."""


def engine_of(plan: Plan) -> Engine:
    """The job's own engine, on one core."""
    return make_engine(plan.spec, plan.manifest.arrays, "cpu")


def loaded_backbone(plan: Plan) -> Backbone:
    """The job's backbone, without its engine, on one core."""
    torch.set_num_threads(1)
    folder = sources.locate(plan.spec.backbone)
    return families.load(folder, dtype=getattr(torch, plan.spec.backbone.dtype), device="cpu")


def loaded(plan: Plan) -> list[LoadedBatch]:
    """All batches of a plan's shards, decoded."""
    with ThreadPoolExecutor(2) as pool:
        items = [item for shard in plan.shards for item in read_batches(Assignment(shard), plan.spec, pool)]
    return [item for item in items if isinstance(item, LoadedBatch)]
