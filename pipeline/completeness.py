"""Whether a store is finished, as far as it says itself: for those who would read a part for the whole.

A store does not list what its input is. What can be told: that nothing is committed, that a limit cut a shard, that a
driver is at work or died, that no run has ended yet, and that the last one ended before its work was done.
"""

from __future__ import annotations

from dataclasses import dataclass

from pipeline import storage
from pipeline.reader import FeatureStore
from schemas.layout import DRIVERS, RUNS
from schemas.receipts import RunRecord

_ALL_OUTCOMES = (0, 3)
"""Exit codes of runs after which every shard has an outcome; 3: some were set aside."""


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
    """The run that began last, of those that have ended; None where none has."""

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
        elif self.last_run.exit_code not in _ALL_OUTCOMES:
            found.append(f"its last run ended with code {self.last_run.exit_code}: {self.last_run.outcome}")
        return found


def completeness(store: FeatureStore) -> Completeness:
    """Look at a store's markers, as of when it was opened, and at its runs."""
    shards = store.ledger.shards
    cut = sorted(shard for shard, state in shards.items() if not state.complete)
    fs, root = storage.open_fs(store.url)
    drivers = [name.partition(".")[0] for name in storage.names(fs, f"{root}/{DRIVERS}")]
    return Completeness(len(shards), cut, drivers, _last_run(store.url))


def _last_run(url: str) -> RunRecord | None:
    fs, root = storage.open_fs(url)
    names = [name for name in storage.names(fs, f"{root}/{RUNS}") if name.endswith(".json")]
    # Names begin with the time at which a run started.
    return RunRecord.model_validate_json(fs.cat_file(f"{root}/{RUNS}/{names[-1]}")) if names else None
