"""Runs a job in this process, one shard after the other, with no Ray and no threads: for debugging."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence

from pipeline import device as devices
from pipeline.features import make_engine
from pipeline.job import Job, Report
from pipeline.meter import Meter
from pipeline.probe import Probe, measure
from pipeline.shards import Shard
from pipeline.trace import Trace, spans_each
from pipeline.worker import Worker
from schemas.receipts import Manifest
from schemas.spec import ExtractSpec

_TICK_S = 0.5


class SerialRunner:
    """The same signature as `RayRunner`."""

    actors = 1
    actors_per_device = 1

    def __init__(self, spec: ExtractSpec, manifest: Manifest, trace: Trace | None = None) -> None:
        device = devices.choose(spec.cluster.device)
        self.device = devices.name(device)
        self._spec, self._kind, self._trace = spec, device, trace
        self._engine = make_engine(spec, manifest.arrays, device)

    def probe(self, shards: Sequence[Shard]) -> Probe:
        """Measure two images."""
        return measure(self._engine, self._spec, shards, self._kind)

    def run(self, job: Job, report: Report) -> None:
        """Do every task of a job."""
        requests, meter = job.spec.cluster.max_requests, Meter(0 if self._trace is None else spans_each(1))
        worker = Worker(
            job.spec, job.manifest, self._engine, device=self.device, requests=requests, meter=meter
        )
        while not job.finished:
            task = job.next_task(idle=True)
            if task is None:  # what is left is in the hands of other drivers
                time.sleep(_TICK_S)
                continue
            try:
                job.succeeded(task, worker.run(task))
            except OSError as error:
                job.failed(task, "io-error", f"{type(error).__name__}: {error}", suspect=False)
            report(worker.progress)
            if self._trace is not None:
                self._trace.take(f"{socket.gethostname()} process {os.getpid()}", meter.take_spans())

    def close(self) -> None:
        """Nothing to give back."""
