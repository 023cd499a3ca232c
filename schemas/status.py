"""What `gatehouse status --json` prints: how far a job is, read from its store alone."""

from __future__ import annotations

from typing import Literal

from schemas.receipts import Receipt, RunRecord


class Shards(Receipt):
    """Input shards by what has become of them."""

    done: int
    """Every sample has an outcome, good or bad."""
    set_aside: int
    """Of these: with a record of their own, since they failed as such or could not be read to their end."""
    cut: int
    """Begun, and cut by a limit."""
    known: int | None
    """Listed by the input's pattern now; None where it could not be listed."""
    left: int | None
    """Of these: without an outcome, or cut."""


class Rows(Receipt):
    """Samples that have an outcome, by their newest."""

    good: int
    bad: int
    """Wholly or in some groups."""
    reasons: dict[str, int]
    """Index records that are not good, by reason; those that speak of a shard as such are counted too."""
    left: int | None
    """Estimated from the bytes of the shards that are left."""


class Rate(Receipt):
    """Rows that were committed a second."""

    rows_per_s: float
    source: Literal["commits", "last-run"]
    """Of a run that may still be at work, by the times of its commits; or of the last run that has ended, with those
    that shared its job."""
    over_s: float
    """Seconds that it was measured over."""


class DriverSeen(Receipt):
    """Someone who says to be at work on the store."""

    driver: str
    host: str
    pid: int
    mode: str
    command: str
    started: str
    silent_s: float
    """Since its last sign of life, by the store's clock."""
    alive: bool
    """It has given one in time, as its own time to live says."""


class Left(Receipt):
    """An estimate of what it takes to finish, at the rate above."""

    seconds: float
    usd: float | None
    """At the price given, for all that works at that rate."""


class Status(Receipt):
    """A store as it was at one moment."""

    version: Literal[1] = 1
    """Of this schema."""
    store: str
    at: str
    """UTC, by the store's clock where it has one."""
    shards: Shards
    rows: Rows
    bytes_of_rows: int
    """Uncompressed bytes of the maps of good rows."""
    last_commit_s: float | None
    """Seconds since the newest commit."""
    rate: Rate | None
    left: Left | None
    """None where the input could not be listed, or nothing is known of the rate."""
    drivers: list[DriverSeen]
    runs: int
    """That have ended and left a record; one that was killed leaves none."""
    worked_s: float
    """Seconds in which at least one of these was at work."""
    spent_usd: float | None
    """For these, at the price given."""
    last_run: RunRecord | None
    notes: list[str]
    """What could not be told, and why."""
