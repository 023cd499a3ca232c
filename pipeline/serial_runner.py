"""Runs a job in this process, one shard after the other, with no Ray and no threads: for debugging."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline import device as devices
from pipeline.features import make_engine
from pipeline.job import Job, Report
from pipeline.probe import Probe, measure
from pipeline.shards import Shard
from pipeline.worker import Worker
from schemas.receipts import Manifest
from schemas.spec import ExtractSpec


class SerialRunner:
    """The same signature as `RayRunner`."""

    actors = 1
    actors_per_device = 1

    def __init__(self, spec: ExtractSpec, manifest: Manifest) -> None:
        device = devices.choose(spec.cluster.device)
        self.device = devices.name(device)
        self._spec, self._kind = spec, device
        self._engine = make_engine(spec, manifest.arrays, device)

    def probe(self, shards: Sequence[Shard]) -> Probe:
        """Measure two images."""
        return measure(self._engine, self._spec, shards, self._kind)

    def run(self, job: Job, report: Report) -> None:
        """Do every task of a job."""
        requests = job.spec.cluster.max_requests
        worker = Worker(job.spec, job.manifest, self._engine, device=self.device, requests=requests)
        while task := job.next_task(idle=True):
            try:
                job.succeeded(task, worker.run(task))
            except OSError as error:
                job.failed(task, "io-error", f"{type(error).__name__}: {error}", suspect=False)
            report(dict(worker.progress))

    def close(self) -> None:
        """Nothing to give back."""
