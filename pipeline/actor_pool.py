"""The actors of a job: started as they are wanted, given up when they die, and given back at its end.

What they are told to do is their runner's. Ray's own restarts and retries are off: a job owns them, because only it
knows which shard may be to blame.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from pipeline import cluster
from pipeline.schedule import MAX_FAILURES, JobFailed
from schemas.spec import Cluster

logger = logging.getLogger("gatehouse")

_WAITING_NOTICE_S = 30.0
_LONGEST_PAUSE_S = 60.0


@dataclass
class Slot:
    """One actor; runners add what it has in hand."""

    handle: Any
    ready: Any
    """Its first answer, until that is there: the device's model and the node's id."""
    started: float = field(default_factory=time.monotonic)
    device: str | None = None
    """Model of its device, once it has loaded what it needs."""
    node: str | None = None
    ping: Any = None
    moved: float = field(default_factory=time.monotonic)
    """When it last answered with counters that had changed, or had nothing to do."""
    progress: dict[str, float] = field(default_factory=dict)


S = TypeVar("S", bound=Slot)


class ActorPool(Generic[S]):
    """Joins a cluster, or starts Ray on this machine; see `cluster.connect` for what it raises.

    Args:
        wanted: of the spec.
        actor: class of the actors.
        slot: what the runner keeps of each.
        options: for Ray, beside those that all actors have.
    """

    def __init__(self, wanted: Cluster, actor: type, slot: type[S], **options: Any) -> None:
        self.share = cluster.connect(wanted)
        self.slots: list[S] = []
        self._wanted, self._slot = wanted, slot
        self._actor: Any = ray.remote(actor).options(
            num_cpus=wanted.cpus_per_actor,
            num_gpus=1 if self.share.device == "cuda" else 0,
            max_restarts=0,
            max_task_retries=0,
            scheduling_strategy="SPREAD",
            **options,
        )
        self._gone: Counter[str] = Counter()
        self._failed_starts = 0
        self._next_start = 0.0

    def fill_up(self, count: int, *arguments: Any) -> None:
        """Start actors until there are so many, unless a pause is due."""
        while len(self.slots) < count and time.monotonic() >= self._next_start:
            self.add(*arguments)

    def add(self, *arguments: Any) -> S:
        """Start one actor with these arguments."""
        handle = self._actor.remote(*arguments)
        slot = self._slot(handle, handle.ready.remote())
        self.slots.append(slot)
        return slot

    def first_answer(self, slot: S, answer: Any) -> Any:
        """Wait for what the first actor was asked, however long it takes to start.

        Raises:
            RayTaskError: the task raised.
            JobFailed: the actor did not start.
        """
        try:
            while not ray.wait([answer], timeout=_WAITING_NOTICE_S)[0]:
                self.say_waiting(slot)
            return ray.get(answer)
        except RayTaskError:
            raise
        except RayError as error:
            raise JobFailed(f"the first actor did not start: {cluster.in_short(error)}") from error

    def say_waiting(self, slot: S) -> None:
        """Say now and then what an actor that does not start is waiting for."""
        if time.monotonic() - slot.started > _WAITING_NOTICE_S and not done(slot.ready):
            slot.started = time.monotonic()
            need = cluster.needs(self._wanted, self.share.device)
            logger.info("waiting for an actor (%s on one node) to start; free now: %s", need, cluster.free())

    def arrived(self, slot: S) -> None:
        """Take an actor's first answer, which is there."""
        slot.device, slot.node = ray.get(slot.ready)
        slot.ready, slot.moved = None, time.monotonic()

    def start_failed(self, why: str) -> None:
        """Wait longer before each further start.

        Raises:
            JobFailed: it has failed too often, and there is no actor that works.
        """
        self._failed_starts += 1
        self._next_start = time.monotonic() + min(_LONGEST_PAUSE_S, 2.0**self._failed_starts)
        if self._failed_starts >= MAX_FAILURES and not any(slot.device for slot in self.slots):
            raise JobFailed(f"actors do not start, or do not work: {why}")

    def start_succeeded(self) -> None:
        """An actor has done something: pauses begin anew."""
        self._failed_starts = 0

    def forget(self, slot: S) -> None:
        """Give up an actor; what it counted stays counted."""
        self.slots.remove(slot)
        ray.kill(slot.handle)  # a dead one may only have been out of reach, and must not keep its GPU
        self._gone.update(slot.progress)

    def progress(self) -> dict[str, float]:
        """Counters of all actors together, dead ones as well."""
        total = Counter(self._gone)
        for slot in self.slots:
            total.update(slot.progress)
        return dict(total)

    def close(self) -> None:
        """Give the actors back, and stop Ray where it was started for this job."""
        for slot in self.slots:
            ray.kill(slot.handle)
        self.slots.clear()
        if self.share.started_here:
            ray.shutdown()


def done(ref: Any) -> bool:
    """Whether an answer is there."""
    return bool(ray.wait([ref], timeout=0, fetch_local=False)[0])
