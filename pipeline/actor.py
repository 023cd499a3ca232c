"""The Ray actor: a `Worker` that can be called from afar. Tasks come in, receipts go out; pixels and features stay."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import ray
from ray.util import metrics

from pipeline import device as devices
from pipeline.attempt import Outcome
from pipeline.features import make_engine
from pipeline.identity import check_weights
from pipeline.probe import Probe, measure
from pipeline.shards import Shard
from pipeline.worker import Task, Worker
from schemas.receipts import Manifest
from schemas.spec import ExtractSpec

_METRICS = {
    "images": "Samples done, good or bad.",
    "bad": "Samples that failed, wholly or in some groups.",
    "bytes_written": "Bytes stored.",
    "read_s": "Seconds spent reading and decoding.",
    "compute_s": "Seconds spent in the backbone.",
    "write_s": "Seconds spent compressing and uploading.",
}


class ExtractActor:
    """One actor, pinned to one GPU or some CPU cores; loads its backbone once, from its source."""

    def __init__(self, spec: ExtractSpec, manifest: Manifest, device: str, requests: int) -> None:
        self._spec, self._device = spec, device
        check_weights(spec, manifest)
        self._engine = make_engine(spec, manifest.arrays, device)
        name = devices.name(device)
        self._worker = Worker(spec, manifest, self._engine, device=name, requests=requests)
        self._counters = {key: metrics.Counter(f"gatehouse_{key}", text) for key, text in _METRICS.items()}
        self._reported: dict[str, float] = {}

    async def ready(self) -> tuple[str, str]:
        """The device's model and the node's id, once the backbone is loaded."""
        return devices.name(self._device), ray.get_runtime_context().get_node_id()

    async def probe(self, shards: Sequence[Shard]) -> Probe:
        """Measure two images; before any task."""
        return measure(self._engine, self._spec, shards, self._device)

    async def extract(self, task: Task) -> Outcome:
        """Do a task behind those that are in hand."""
        return await asyncio.wrap_future(self._worker.submit(task))

    async def progress(self) -> dict[str, float]:
        """Counters since the start; also proves that the actor answers."""
        progress: dict[str, float] = dict(self._worker.progress)
        for key, value in progress.items():
            if value > self._reported.get(key, 0):
                self._counters[key].inc(value - self._reported.get(key, 0))
        self._reported = progress
        return progress | {"resident_bytes": devices.used_bytes("cpu")}
