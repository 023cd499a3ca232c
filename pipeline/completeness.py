"""Whether a store is finished, as far as it says itself: for those who would read a part for the whole.

A store does not list what its input is. What can be told: that nothing is committed, that a limit cut a shard, that a
driver is at work or died since the last run ended, that no run has ended yet, and that the last one ended before its
work was done.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import dataclass

from fsspec import AbstractFileSystem
from pydantic import ValidationError

from pipeline import storage, times
from pipeline.reader import FeatureStore
from schemas.layout import DRIVERS, RUNS
from schemas.lease import Heartbeat
from schemas.receipts import RunRecord

FINISHED = (0, 3)
"""Exit codes of runs that did what they were told; 3: some shards were set aside."""
_HELD = 6


@dataclass(frozen=True)
class Completeness:
    """What a store says of what it lacks."""

    shards: int
    """That have an outcome, in whole or in part."""
    cut: list[str]
    """Of these, those that a limit cut, so that samples behind it have none."""
    drivers: list[str]
    """Those that have not said that they ended: at work, or dead."""
    last_run: RunRecord | None
    """The run that ended last; None where none has."""

    @property
    def gaps(self) -> list[str]:
        """A sentence for each thing that says that the store is unfinished; empty where nothing does."""
        found = []
        if not self.shards:
            found.append("nothing is committed yet")
        if self.cut:
            found.append(f"a limit cut {len(self.cut)} of {self.shards} shards, {self.cut[0]!r} first")
        if self.drivers:
            found.append(
                f"driver {self.drivers[0]} is at work, or died: `gatehouse status` says which, and the next run takes"
                " over"
            )
        if self.last_run is None:
            found.append("no run over it has ended yet")
        elif self.last_run.exit_code not in FINISHED:
            found.append(f"its last run ended with code {self.last_run.exit_code}: {self.last_run.outcome}")
        elif self.last_run.left:
            found.append(f"its last run was told to leave {self.last_run.left} shards of its input")
        return found


def completeness(store: FeatureStore) -> Completeness:
    """Look at a store's markers, as of when it was opened, and at its runs."""
    shards = store.ledger.shards
    cut = sorted(shard for shard, state in shards.items() if not state.complete)
    fs, root = storage.open_fs(store.url)
    ended, run = _newest_run(fs, root)
    return Completeness(len(shards), cut, _drivers(fs, root, since=ended), run)


def _newest_run(fs: AbstractFileSystem, root: str) -> tuple[float, RunRecord | None]:
    """The run that ended last, and when it did so by the store's clock; without those that only found that another
    driver has the job, and those of other releases."""
    written = times.written(fs, f"{root}/{RUNS}")
    for time, name in sorted(((time, name) for name, time in written.items()), reverse=True):
        if name.endswith(".json"):
            with suppress(ValidationError):
                run = RunRecord.model_validate_json(fs.cat_file(f"{root}/{RUNS}/{name}"))
                if run.exit_code != _HELD:
                    return time, run
    return -math.inf, None


def _drivers(fs: AbstractFileSystem, root: str, since: float) -> list[str]:
    """Drivers that have not said that they ended, without those that were dead already when a later run ended."""
    found = []
    for name, time in times.written(fs, f"{root}/{DRIVERS}").items():
        try:
            beat = Heartbeat.model_validate_json(fs.cat_file(f"{root}/{DRIVERS}/{name}"))
        except FileNotFoundError:  # it has ended just now
            continue
        except ValidationError:
            found.append(name.partition(".")[0])
            continue
        if time + beat.patience_s >= since:
            found.append(beat.driver)
    return found
