"""Which shard is done next, where other drivers may be at work on the same store.

A driver that has the job to itself sees to it that it still has. Drivers that share one take a lease on each shard
before they hand it out, in an order of their own, and set aside for later what others hold. Now and then they look what
those have committed; what a dead driver held comes back.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Container, Iterable, Sequence

import numpy as np

from pipeline import ledger, storage, todo
from pipeline.batches import Assignment
from pipeline.leases import Driver
from pipeline.schedule import Schedule
from schemas.layout import MARKERS, marker_name, shard_lease

_LOOK_EVERY_S = 5.0
_LOOK_SHARE = 0.1  # of the driver's time, at most: a listing of 100,000 markers takes 100 requests


def make_schedule(url: str, assignments: Sequence[Assignment], driver: Driver | None) -> Schedule[Assignment]:
    """The schedule of a run, by its driver's mode."""
    if driver is None:
        return Schedule(assignments)
    if driver.me.mode == "exclusive":
        return ExclusiveSchedule(assignments, driver)
    return SharedSchedule(url, assignments, driver)


class ExclusiveSchedule(Schedule[Assignment]):
    """Of a driver that has the job to itself."""

    def __init__(self, assignments: Sequence[Assignment], driver: Driver) -> None:
        super().__init__(assignments)
        self._driver = driver

    def next(self, *, idle: bool) -> Assignment | None:
        """As `Schedule.next`.

        Raises:
            Held: another driver has taken the job over.
            OSError: the store could not be asked; nothing was handed out.
        """
        self._driver.keep_on()
        return super().next(idle=idle)


class SharedSchedule(Schedule[Assignment]):
    """Of a driver that shares a job with others; it ends when every shard has an outcome, whoever's.

    Args:
        url: of the store.
        assignments: what was left to do when this driver came.
        driver: leases in its name.
    """

    def __init__(self, url: str, assignments: Sequence[Assignment], driver: Driver) -> None:
        order = np.random.default_rng(int(driver.me.driver, 16)).permutation(len(assignments))
        super().__init__([assignments[place] for place in order])
        self._driver = driver
        self._fs, self._root = storage.open_fs(url)
        self._elsewhere: list[tuple[Assignment, str]] = []  # with the driver that holds it
        self._next_look = 0.0

    @property
    def finished(self) -> bool:
        """Whether nothing is pending or running, here or elsewhere."""
        return self.idle and not self._elsewhere

    @property
    def remaining(self) -> int:
        """Assignments that are pending or running, here or elsewhere."""
        return super().remaining + len(self._elsewhere)

    def next(self, *, idle: bool) -> Assignment | None:
        """As `Schedule.next`, of those that no other driver does or has done.

        Raises:
            Held: an exclusive driver has come while this one was silent.
            OSError: the store could not be asked; nothing was handed out.
        """
        self._driver.keep_on()
        if self._elsewhere and time.monotonic() >= self._next_look:
            self._look()
        while (assignment := super().next(idle=idle)) is not None:
            try:
                holder = self._driver.take(shard_lease(assignment.shard.id, assignment.round))
                rest = assignment if holder else self._rest(assignment)
            except OSError:
                self.interrupted(assignment)
                raise
            if holder is None and rest == assignment:
                return assignment
            self._running -= 1
            if holder is not None:
                self._elsewhere.append((assignment, holder))
            elif rest is not None:
                self._pending.append(rest)
            else:
                self.by_others += 1
        return None

    def _rest(self, assignment: Assignment) -> Assignment | None:
        """What of it is still to do; others may have committed it before its lease became free."""
        name = _marker(assignment)
        try:
            text = self._fs.cat_file(f"{self._root}/{MARKERS}/{name}")
        except FileNotFoundError:
            return assignment
        return todo.left_by(self._fs, self._root, ledger.parse(f"{MARKERS}/{name}", text), assignment)

    def _look(self) -> None:
        """Drop what others have committed, and take back what was held by drivers that are dead."""
        began = time.monotonic()
        done = set(storage.names(self._fs, f"{self._root}/{MARKERS}"))
        before = self.remaining
        holders = dict(self._elsewhere)
        pending, elsewhere = self._undone(self._pending, done), list[tuple[Assignment, str]]()
        for one in self._undone(holders, done):
            if (holder := holders.get(one)) and self._driver.seems_alive(holder):
                elsewhere.append((one, holder))
            else:
                pending.append(one)
        self._pending, self._elsewhere = deque(pending), elsewhere  # once no request can fail any more
        self.by_others += before - self.remaining
        now = time.monotonic()
        self._next_look = now + max(_LOOK_EVERY_S, (now - began) / _LOOK_SHARE)

    def _undone(self, assignments: Iterable[Assignment], done: Container[str]) -> list[Assignment]:
        """Without those that have a marker. What a retry's leaves costs a request to see; a limit, which may have cut
        another shard's, excludes sharing, and leaves the rest to the next run."""
        rests = (
            one if _marker(one) not in done else self._rest(one) if one.only else None for one in assignments
        )
        return [rest for rest in rests if rest is not None]


def _marker(assignment: Assignment) -> str:
    return marker_name(assignment.shard.id, assignment.round)
