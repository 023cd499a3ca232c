"""How fast rows are committed, how many are left, and what these will take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from pipeline.ledger import Ledger, ShardState
from pipeline.listing import Shard
from schemas.layout import marker_name
from schemas.receipts import RunRecord
from schemas.status import Left, Rate

_RECENT_S = 3600.0  # of commits that the rate of a run at work is made of


class Commit(NamedTuple):
    """A marker, as far as a rate needs it."""

    time: float
    """Seconds since 1970, by the store's clock."""
    rows: int


@dataclass(frozen=True)
class Stretch:
    """A time in which one or more runs were at work, by their drivers' clocks."""

    began: float
    ended: float
    images: int

    @property
    def seconds(self) -> float:
        """Of the clock, however many runs there were."""
        return self.ended - self.began


def commits(committed: Ledger) -> list[Commit]:
    """Of all markers, in the order of time."""
    rows = {marker_name(marker.shard, marker.round): marker.rows for marker in committed.markers}
    return sorted(Commit(time, rows[name]) for name, time in committed.written.items() if name in rows)


def stretches(runs: Sequence[RunRecord]) -> list[Stretch]:
    """Runs that overlapped, as drivers that share a job do, together; in the order of time."""
    found: list[Stretch] = []
    for run in sorted(runs, key=_began):
        one = Stretch(_began(run), _began(run) + run.seconds, run.images)
        if found and one.began <= found[-1].ended:
            last = found.pop()
            one = Stretch(last.began, max(last.ended, one.ended), last.images + one.images)
        found.append(one)
    return found


def _began(run: RunRecord) -> float:
    return datetime.fromisoformat(run.started).timestamp()


def rate(committed: Sequence[Commit], runs: Sequence[tuple[float, RunRecord]], taken: float) -> Rate | None:
    """Of what has been committed since the last run ended, or since the job was last taken; else of the last runs.

    Args:
        committed: in the order of time.
        runs: with the time when each ended.
        taken: when an exclusive driver last took the job.
    """
    since = max([taken, *(time for time, _ in runs)], default=0.0)
    if found := recent_rate([commit for commit in committed if commit.time > since]):
        return Rate(rows_per_s=found[0], source="commits", over_s=found[1])
    for stretch in reversed(stretches([run for _, run in runs])):
        if stretch.images and stretch.seconds:
            return Rate(
                rows_per_s=stretch.images / stretch.seconds, source="last-run", over_s=stretch.seconds
            )
    return None


def left(rows: int | None, at: Rate | None, usd_per_hour: float | None) -> Left | None:
    """What that many rows take at a rate, None where either is not known."""
    if rows is None or (rows and (at is None or not at.rows_per_s)):
        return None
    seconds = rows / at.rows_per_s if rows and at else 0.0
    return Left(seconds=seconds, usd=None if usd_per_hour is None else seconds / 3600 * usd_per_hour)


def recent_rate(commits: Sequence[Commit]) -> tuple[float, float] | None:
    """(rows a second, seconds that it was measured over) of the last hour of commits, given in the order of time.

    The first commit only starts the clock: when its rows were begun is not known. None where there is no later one.
    """
    recent = [commit for commit in commits if commit.time >= commits[-1].time - _RECENT_S]
    for window in (recent, commits):
        if window and (seconds := window[-1].time - window[0].time) > 0:
            rows = sum(commit.rows for commit in window if commit.time > window[0].time)
            return rows / seconds, seconds
    return None


def left_rows(inputs: Sequence[Shard], committed: Ledger) -> int | None:
    """Samples without an outcome, at the bytes a sample of shards that are done; None where there are none yet."""
    left = [shard for shard in inputs if not done(committed.shards.get(shard.id))]
    if not left:
        return 0
    whole = [state for state in committed.shards.values() if state.complete and not state.broken]
    samples, size = sum(state.stop for state in whole), sum(state.markers[-1].size for state in whole)
    if not samples or not size:
        return None
    begun = {id: state.stop for id, state in committed.shards.items()}
    return round(sum(max(0.0, shard.size * samples / size - begun.get(shard.id, 0)) for shard in left))


def done(state: ShardState | None) -> bool:
    """Whether every sample of a shard has an outcome."""
    return state is not None and state.complete
