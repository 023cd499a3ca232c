"""Heartbeats and leases as objects of a store, and their ages by the store's clock."""

from __future__ import annotations

from typing import TypeVar

from pydantic import ValidationError

from pipeline import storage
from pipeline.times import modified
from schemas.layout import DRIVERS, LEASES, heartbeat_path, lease_path
from schemas.lease import Heartbeat, Lease
from schemas.receipts import Receipt

R = TypeVar("R", bound=Receipt)


class Board:
    """What drivers tell each other through one store.

    Args:
        url: of the store, which may not be there yet.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._fs, self._root = storage.open_fs(url)

    def renew(self, heartbeat: Heartbeat) -> dict[str, float]:
        """Store a heartbeat; return the age of every driver's, in seconds, 0 for this one.

        Both times that an age is made of come from the store, so the machines' clocks may differ at will.
        """
        storage.put(self._fs, f"{self._root}/{heartbeat_path(heartbeat.driver)}", heartbeat.to_bytes())
        found = self._fs.ls(f"{self._root}/{DRIVERS}", detail=True)
        names = {str(info["name"]).rsplit("/", 1)[-1]: info for info in found}
        times = {name[:-5]: modified(info) for name, info in names.items() if name.endswith(".json")}
        if heartbeat.driver not in times:
            raise storage.StorageError(
                f"store {self.url}: {heartbeat_path(heartbeat.driver)} was removed as soon as it was written; leave"
                f" {LEASES}/ alone while jobs run"
            )
        return {driver: times[heartbeat.driver] - time for driver, time in times.items()}

    def heartbeat(self, driver: str) -> Heartbeat | None:
        """What a driver says of itself; None where it has ended."""
        return self._read(heartbeat_path(driver), Heartbeat)

    def remove(self, driver: str) -> None:
        """Take a driver's heartbeat away: it has ended."""
        self._fs.rm_file(f"{self._root}/{heartbeat_path(driver)}")

    def create(self, lease: Lease) -> Lease:
        """Create a lease, unless there is one of its number; return the one that is there now."""
        path = lease_path(lease.resource, lease.number)
        while not storage.create(self._fs, f"{self._root}/{path}", lease.to_bytes()):
            if there := self._read(path, Lease):  # perhaps ours: the answer of the first request was lost
                return there
        return lease

    def lease(self, resource: str, number: int) -> Lease | None:
        """The lease of a number, if there is one."""
        return self._read(lease_path(resource, number), Lease)

    def newest(self, resource: str) -> int:
        """Number of the newest lease in the folder itself, 0 where there is none; not for leases on shards."""
        names = storage.names(self._fs, f"{self._root}/{LEASES}")
        numbers = [name[len(resource) + 1 : -5] for name in names if name.startswith(f"{resource}-")]
        return max((int(number) for number in numbers if number.isdigit()), default=0)

    def _read(self, path: str, kind: type[R]) -> R | None:
        try:
            return kind.model_validate_json(self._fs.cat_file(f"{self._root}/{path}"))
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise storage.StorageError(
                f"store {self.url}: {path} is not of this release; drivers on one store must be of one release. If"
                " none is at work, remove it"
            ) from error
