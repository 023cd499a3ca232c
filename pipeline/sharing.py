"""Which shard is done next, where other drivers may be at work on the same store.

A driver that has the job to itself sees to it that it still has. Drivers that share one take a lease on each shard
before they hand it out, in an order of their own, and set aside for later what others hold. Now and then they look what
those have committed; what a dead driver held comes back.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

import numpy as np

from pipeline import storage
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
        """
        self._driver.keep_job()
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
        """As `Schedule.next`, of those that no other driver does or has done."""
        if self._elsewhere and time.monotonic() >= self._next_look:
            self._look()
        while (assignment := super().next(idle=idle)) is not None:
            holder = self._driver.take(shard_lease(assignment.shard.id, assignment.round))
            if holder is None and not self._is_done(assignment):
                return assignment
            self._running -= 1
            if holder is None:
                self.by_others += 1
            else:
                self._elsewhere.append((assignment, holder))
        return None

    def _is_done(self, assignment: Assignment) -> bool:
        """Whether it was committed before its lease became free."""
        return bool(self._fs.exists(f"{self._root}/{MARKERS}/{_marker(assignment)}"))

    def _look(self) -> None:
        """Drop what others have committed, and take back what was held by drivers that are dead."""
        began = time.monotonic()
        done = set(storage.names(self._fs, f"{self._root}/{MARKERS}"))
        before = self.remaining
        self._pending = deque(one for one in self._pending if _marker(one) not in done)
        elsewhere, self._elsewhere = self._elsewhere, []
        for one, holder in elsewhere:
            if _marker(one) in done:
                continue
            if self._driver.seems_alive(holder):
                self._elsewhere.append((one, holder))
            else:
                self._pending.append(one)
        self.by_others += before - self.remaining
        now = time.monotonic()
        self._next_look = now + max(_LOOK_EVERY_S, (now - began) / _LOOK_SHARE)


def _marker(assignment: Assignment) -> str:
    return marker_name(assignment.shard.id, assignment.round)
