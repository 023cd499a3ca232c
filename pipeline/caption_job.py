"""One run over shards that lack captions: what is left, what came of the rest, and the runner without Ray."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline import device as devices
from pipeline.caption_shards import CaptionWorker, Outcome, Preview
from pipeline.schedule import Schedule
from pipeline.shards import Shard
from schemas.captions import CaptionsManifest, CaptionSpec

logger = logging.getLogger("gatehouse")


@dataclass(frozen=True)
class Task:
    """A shard to caption."""

    shard: Shard


class CaptionJob:
    """The driver's side of a run: what is left, and what came of the rest."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.schedule = Schedule([Task(shard) for shard in shards])
        self.counts: Counter[str] = Counter()
        """Records of this run by reason, `ok` for none."""
        self.bytes_done = 0
        """Of input shards."""
        self.stopping = threading.Event()
        """Set to hand out nothing more."""

    def next(self) -> Task | None:
        """A shard to do now."""
        return None if self.stopping.is_set() else self.schedule.next(idle=True)

    def succeeded(self, task: Task, outcome: Outcome) -> None:
        """A shard's captions are stored."""
        self.schedule.succeeded(task)
        self.counts.update(outcome.counts)
        self.bytes_done += task.shard.size

    def failed(self, task: Task, why: str) -> None:
        """A shard failed; it is tried again, or after the last try left for another run.

        Raises:
            JobFailed: nothing but failures so far.
        """
        logger.warning("%s: %s", task.shard.id, why)
        self.schedule.failed(task, why, suspect=False)


Report = Callable[[CaptionJob, dict[str, float]], None]
"""Takes the counters of all workers together."""


class SerialCaptions:
    """In this process, without Ray."""

    actors = 1

    def __init__(self, spec: CaptionSpec, manifest: CaptionsManifest) -> None:
        device = devices.choose(spec.cluster.device)
        self.device = devices.name(device)
        self._worker = CaptionWorker(spec, manifest, device)

    def preview(self, shard: Shard) -> Preview:
        """The first batch of a shard; nothing is stored."""
        return self._worker.preview(shard)

    def run(self, job: CaptionJob, report: Report) -> None:
        """Caption every shard of a job, or, once it is stopping, no other."""
        while task := job.next():
            try:
                job.succeeded(task, self._worker.run(task.shard))
            except OSError as error:
                job.failed(task, f"{type(error).__name__}: {error}")
            report(job, dict(self._worker.progress))

    def close(self) -> None:
        """Nothing to give back."""
