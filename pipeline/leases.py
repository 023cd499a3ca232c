"""Who works on a store: a driver that gives signs of life, and what it holds as long as it does.

Leases save work and nothing else: whatever two drivers do at once, the commit protocol (`pipeline.attempt`) stores
every row once. So a lease may be wrong where a clock jumps, and that costs time, not rows.

A lease is a numbered object, and the newest one counts for as long as its driver lives. Who finds that driver dead or
ended creates the next number, and create-only decides between several. A driver that could not renew its heartbeat
within the time to live must take what it held anew, by the same rule as everyone. As long as all clocks run equally
fast, a resource so has one holder at most at any time: others wait for the whole time to live, counted by the store's
clock from a renewal that the holder itself counts from its beginning.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime

from pipeline.lease_board import Board
from pipeline.storage import StorageError
from schemas.layout import JOB, LEASES
from schemas.lease import Heartbeat, Lease

logger = logging.getLogger("gatehouse")


class Held(RuntimeError):
    """Another driver is at work on the store."""


def awake() -> float:
    """Seconds, also those for which the machine was suspended, where the system counts them."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Driver:
    """One run of a job on one store.

    Args:
        board: of the store.
        me: what it says of itself.
        clock: seconds, from any beginning.
        sleep: waits, in seconds.
    """

    def __init__(
        self,
        board: Board,
        me: Heartbeat,
        clock: Callable[[], float] = awake,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.me = me
        self._board, self._clock, self._sleep = board, clock, sleep
        self._lock = threading.RLock()  # the thread that renews, and the one that works
        self._renewed = -math.inf  # when the last renewal that succeeded began
        self._ended = False
        # Nobody was in the way when this driver entered, and it has not been silent since.
        self._welcome = False
        self._silences = 0
        self._held: set[str] = set()
        self._numbers: dict[str, int] = {}  # of our newest leases, also of those that we hold no more
        self._ages: dict[str, float] = {}
        self._known: dict[str, Heartbeat] = {}
        self._taken_over: set[str] = set()

    def enter(self) -> None:
        """Give the first sign of life, and take the job where the mode is exclusive.

        Who is in the way is watched until it gives another sign of life, or is known to be dead: so a refusal takes up
        to a third of the time to live, and a job that is started again right after a crash goes on by itself.

        Raises:
            Held: by a driver beside which this one may not work.
            StorageError: a right is missing.
        """
        try:
            self.beat()
        except OSError as error:
            raise StorageError(
                f"store {self._board.url}: no sign of life can be given in {LEASES}/ ({error}); the job needs the"
                " rights to create, replace, read, list and delete objects there"
            ) from error
        self._await_clear()

    def beat(self) -> None:
        """Give a sign of life and look at the others'. After a silence as long as the time to live, nothing is held.

        Raises:
            OSError: the store cannot be reached, and the silence lasts.
        """
        with self._lock:
            if self._ended:
                return
            began = self._clock()
            ages = self._board.renew(self.me)
            if self._silent():  # others may have counted us dead before this renewal arrived
                self._held.clear()
                self._welcome = False
                self._silences += 1
            self._renewed, self._ages = began, ages

    def holds(self, resource: str) -> bool:
        """Whether nobody else can have taken a resource by now."""
        return not self._silent() and resource in self._held

    @property
    def at_work(self) -> bool:
        """Whether nobody beside whom this driver may not work can have entered since it did."""
        return not self._silent() and self._welcome

    def take(self, resource: str, first: int = 0) -> str | None:
        """Lease a resource: None when it is this driver's now, else the id of the living driver that holds it.

        Args:
            resource: `layout.JOB`, or a `layout.shard_lease`.
            first: number to begin at, with no gaps behind it.
        """
        with self._lock:
            if self._silent():
                self.beat()
            number = first
            while resource not in self._held:
                there = self._create(resource, number)
                if there.driver != self.me.driver and self._look_at(there.driver):
                    return there.driver
                number += 1
            return None

    def keep_on(self) -> None:
        """Go on working: nothing to do as long as signs of life succeed.

        After a silence, others may have entered beside whom this driver may not work. An exclusive one takes the job
        anew only where no exclusive one has had it meanwhile, since that has changed what is left of it. (Drivers that
        shared it and went leave no trace of that; the shards they did are done once more, in vain.)

        Raises:
            Held: another driver has come, or had the job, since this one was silent.
            OSError: the store cannot be reached, or takes longer than the time to live, and the silence lasts.
        """
        if self.at_work:
            return
        with self._lock:
            if self._silent():
                self.beat()
            if self._welcome:  # the thread that renews was first, and in time
                return
            if self.me.mode == "shared":
                self._await_clear()
            elif self._board.newest(JOB) != self._numbers.get(JOB) or self._obstacle() is not None:
                raise Held(
                    f"store {self._board.url}: this driver gave no sign of life for more than {self.me.ttl_s:.0f} s,"
                    " and another one has taken the job over; this one hands out nothing more"
                )
            if not self.at_work:
                raise StorageError(
                    f"store {self._board.url}: a look at {LEASES}/ took longer than the {self.me.ttl_s:.0f} s of"
                    " cluster.lease_ttl_s"
                )

    def others(self) -> list[Heartbeat]:
        """Other drivers that are alive, as of the last sign of life."""
        ids = [driver for driver in self._ages if driver != self.me.driver and self.seems_alive(driver)]
        return [self._known[driver] for driver in ids]

    def seems_alive(self, driver: str) -> bool:
        """Whether a driver had given a sign of life in time when this one gave its last."""
        age = self._ages.get(driver)
        if age is None:
            return False
        heartbeat = self._known.get(driver) or self._board.heartbeat(driver)
        if heartbeat is None:  # it has ended just now
            return False
        self._known[driver] = heartbeat
        return age <= heartbeat.patience_s

    def end(self) -> None:
        """Give up everything at once, so that nobody has to wait for the time to live."""
        with self._lock:
            self._ended = True
            self._held.clear()
            try:
                self._board.remove(self.me.driver)
            except OSError as error:
                if self._renewed > -math.inf:  # else there is none, or what went wrong has been said
                    logger.warning("others count this driver as alive for %.0f s: %s", self.me.ttl_s, error)

    def _await_clear(self) -> None:
        """Wait until nobody is in the way, or until who is has given another sign of life.

        Raises:
            Held: by that driver.
        """
        watched, before = "", math.inf
        while (other := self._obstacle()) is not None:
            age = self._ages.get(other, 0.0)
            if other == watched and age < before:
                raise self._refusal(other)
            if other != watched:
                logger.info("waiting for a sign of life of %s", self._describe(self._known[other]))
            watched, before = other, age
            self._sleep(self._known[other].ttl_s / 10)
            self.beat()

    def _obstacle(self) -> str | None:
        """Who is in the way. Where nobody is, this driver is at work, unless it was silent while it looked: `keep_on`
        looks again then."""
        before = self._silences
        found = self._in_the_way()
        self._welcome = found is None and before == self._silences and not self._silent()
        return found

    def _in_the_way(self) -> str | None:
        """A living driver beside which this one may not work; where there is none, the job is taken if need be.

        Both sides make themselves seen before they look: a shared driver by its heartbeat, an exclusive one by its
        lease.

        Raises:
            Held: a shared driver came between the look and the lease. This one must go, since the other waits for it.
        """
        newest = self._board.newest(JOB)
        if self.me.mode == "shared":
            lease = self._board.lease(JOB, newest)
            return lease.driver if lease and self._look_at(lease.driver) else None
        shared = (other.driver for other in self.others() if other.mode == "shared")
        if (found := next(shared, None) or self.take(JOB, newest)) is not None:
            return found
        self.beat()
        for other in self.others():
            if other.mode == "shared":
                self._held.discard(JOB)
                raise self._refusal(other.driver)
        return None

    def _create(self, resource: str, number: int) -> Lease:
        """Create a lease, unless there is one; return the one that is there now."""
        mine = Lease(resource=resource, number=number, driver=self.me.driver, taken=_now())
        there = self._board.create(mine)
        if there == mine:
            self._held.add(resource)
            self._numbers[resource] = number
        return there

    def _silent(self) -> bool:
        return self._clock() - self._renewed > self.me.ttl_s

    def _look_at(self, driver: str) -> bool:
        """Whether the holder of a lease is alive; that it is dead takes a look that is newer than the lease."""
        if self.seems_alive(driver):
            return True
        self.beat()
        if self.seems_alive(driver):
            return True
        if driver in self._known and driver in self._ages and driver not in self._taken_over:
            self._taken_over.add(driver)
            logger.warning("what it held is taken over: %s", self._describe(self._known[driver]))
        return False

    def _refusal(self, driver: str) -> Held:
        other = self._known[driver]
        return Held(
            f"store {self._board.url}: another driver is at work there: {self._describe(other)}. Start again when it"
            f" has ended; one that was killed counts as dead {other.patience_s:.0f} s after its last sign of"
            " life"
        )

    def _describe(self, other: Heartbeat) -> str:
        age = max(0.0, self._ages.get(other.driver, 0.0))
        return (
            f"{other.host}, process {other.pid} ({other.command}), {other.mode}, since {other.started}, last sign of"
            f" life {age:.0f} s ago"
        )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
