"""The Ray actor: a `Worker` that can be called from afar. Tasks come in, receipts go out; pixels and features stay."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass

import ray

from pipeline import device as devices
from pipeline import logs
from pipeline.attempt import Outcome
from pipeline.features import make_engine
from pipeline.identity import check_weights
from pipeline.meter import Meter, Span
from pipeline.metrics import Exporter, WorkerMetrics
from pipeline.probe import Probe, measure
from pipeline.shards import Shard
from pipeline.store import check_shared
from pipeline.worker import Task, Worker
from schemas.receipts import Manifest
from schemas.spec import ExtractSpec


@dataclass(frozen=True)
class Watch:
    """What an actor is to tell of its work, beside its counters."""

    spans: int = 0
    """For a trace, at most."""
    json_logs: bool = False


@dataclass(frozen=True)
class Progress:
    """What an actor tells when it is asked."""

    worker: str
    """Host and process."""
    counters: dict[str, float]
    """Since the start, as `pipeline.meter` names them."""
    resident_bytes: int
    spans: list[Span]
    """Since the last answer."""


class ExtractActor:
    """One actor, pinned to one GPU or some CPU cores; loads its backbone once, from its source."""

    def __init__(
        self, spec: ExtractSpec, manifest: Manifest, device: str, requests: int, watch: Watch
    ) -> None:
        if watch.json_logs:
            logs.configure(json_lines=True)
        self._spec, self._manifest, self._device = spec, manifest, device
        self._shared = False  # the store may not be there yet
        check_weights(spec, manifest)
        self._engine = make_engine(spec, manifest.arrays, device)
        self._meter = Meter(watch.spans)
        self._metrics = WorkerMetrics(Exporter())
        name = devices.name(device)
        self._worker = Worker(spec, manifest, self._engine, device=name, requests=requests, meter=self._meter)

    async def ready(self) -> tuple[str, str]:
        """The device's model and the node's id, once the backbone is loaded."""
        return devices.name(self._device), ray.get_runtime_context().get_node_id()

    async def probe(self, shards: Sequence[Shard]) -> Probe:
        """Measure two images; before any task."""
        return measure(self._engine, self._spec, shards, self._device)

    async def extract(self, task: Task) -> Outcome:
        """Do a task behind those that are in hand."""
        if not self._shared:
            await asyncio.to_thread(check_shared, self._spec.store, self._manifest)
            self._shared = True
        return await asyncio.wrap_future(self._worker.submit(task))

    async def progress(self) -> Progress:
        """What has been done since the start; also proves that the actor answers, and keeps its metrics up to date."""
        counters = self._meter.counters()
        self._metrics.update(counters, self._worker.queues)
        worker = f"{socket.gethostname()} process {os.getpid()}"
        return Progress(worker, counters, devices.used_bytes("cpu"), self._meter.take_spans())
