"""Which shard is done next, and what becomes of one that fails: plain bookkeeping, no Ray.

A worker that dies takes all its shards with it, though one is to blame. So each becomes a suspect and is done again
alone on a worker; who dies alone is guilty. Three failures set a shard aside, and the job goes on.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

from pipeline.listing import Shard

MAX_FAILURES = 3
_HOPELESS = 3  # shards set aside, and none done, after which the fault is surely not the shards'


class JobFailed(RuntimeError):
    """Every shard fails: going on would set all of them aside for nothing."""


class Work(Protocol):
    """What a worker can be given: a shard, or a part of one."""

    @property
    def shard(self) -> Shard:
        """The shard that is to blame where it fails."""


W = TypeVar("W", bound=Work)


class Schedule(Generic[W]):
    """Assignments on their way from pending to done or set aside."""

    def __init__(self, assignments: Sequence[W]) -> None:
        self._pending = deque(assignments)
        self._failures: Counter[str] = Counter()
        self._suspects: set[str] = set()
        self._running = 0
        self.done = 0
        self.set_aside: list[str] = []
        self.by_others = 0
        """Assignments that other drivers have done meanwhile."""

    @property
    def idle(self) -> bool:
        """Whether nothing is pending or running here."""
        return not self._pending and not self._running

    @property
    def finished(self) -> bool:
        """Whether nothing is left to wait for."""
        return self.idle

    @property
    def remaining(self) -> int:
        """Assignments that are not done or set aside."""
        return len(self._pending) + self._running

    def next(self, *, idle: bool) -> W | None:
        """An assignment to start now; suspects go to idle workers only. None when there is none for this worker."""
        for place, assignment in enumerate(self._pending):
            if idle or not self.is_suspect(assignment):
                del self._pending[place]
                self._running += 1
                return assignment
        return None

    def is_suspect(self, assignment: W) -> bool:
        """Whether it must be alone on its worker."""
        return assignment.shard.id in self._suspects

    def succeeded(self, assignment: W) -> None:
        """It is committed."""
        self._running -= 1
        self._suspects.discard(assignment.shard.id)
        self.done += 1

    def add(self, assignment: W) -> None:
        """More to do, found on the way."""
        self._pending.append(assignment)

    def interrupted(self, assignment: W) -> None:
        """Its node went away, or the job stops: not its fault."""
        self._running -= 1
        self._pending.appendleft(assignment)

    def failed(self, assignment: W, detail: str, *, suspect: bool) -> bool:
        """It failed, or its worker died; True when this was once too often and it must be set aside.

        Raises:
            JobFailed: nothing but failures so far.
        """
        shard = assignment.shard.id
        self._failures[shard] += 1
        if suspect:
            self._suspects.add(shard)
        if self._failures[shard] < MAX_FAILURES:
            # Behind the others: an actor that fails fast must not meet the same shard again and again.
            self._running -= 1
            self._pending.append(assignment)
            return False
        self._running -= 1
        self.set_aside.append(shard)
        if not self.done and len(self.set_aside) >= _HOPELESS:
            raise JobFailed(
                f"the first {_HOPELESS} shards failed {MAX_FAILURES} times each and none succeeded; last, {shard}:"
                f" {detail}"
            )
        return True
