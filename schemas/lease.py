"""Who works on a store: heartbeats of drivers, and their leases. They save double work; no row rests on them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from schemas.receipts import Receipt

Mode = Literal["exclusive", "shared"]
"""How a driver works on a store: as the only one, or beside others of the same spec."""


class Heartbeat(Receipt):
    """A driver lives. It alone stores this again and again, always the same, and removes it at its end.

    Its age is what the store's own clock says: when it was last modified, beside an object that has just been written.
    """

    driver: str
    """Id of the run, new for each."""
    mode: Mode
    host: str
    pid: int
    command: str
    started: str
    """UTC, by the driver's clock: for people only."""
    ttl_s: float = Field(gt=0)
    """Seconds without a sign of life after which others take this driver for dead."""

    @property
    def patience_s(self) -> float:
        """How long others wait by the store's clock, which on object stores knows whole seconds only."""
        return self.ttl_s + 1.0


class Lease(Receipt):
    """A driver works on something: on the job as a whole, or on one round of a shard.

    Numbered and create-only: the newest one counts, for as long as its driver lives.
    """

    resource: str
    number: int
    driver: str
    taken: str
    """UTC, by the driver's clock: for people, and to tell two leases of one driver apart."""
