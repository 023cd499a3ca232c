"""What is left to do: shards against what the store has committed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc
from fsspec import AbstractFileSystem

from pipeline.batches import Assignment
from pipeline.index import Where
from pipeline.ledger import Ledger
from pipeline.shards import Shard, count_samples
from pipeline.tables import read_parquet
from schemas.receipts import Marker
from schemas.spec import Input

PASSING_REASONS = ("io-error", "worker-died", "worker-error")
"""Reasons that can pass, which `--retry-failed` tries again unless told otherwise."""


INDEX_COLUMNS = ["shard", "key", "position", "reason"]
"""Of the index, what `failed` looks at."""
BAD = Where(["reason"], pc.field("reason").is_valid())
"""The records that it looks at."""


class ChangedShard(ValueError):
    """An input shard is not what it was when its rows were stored."""


def check_unchanged(shards: Sequence[Shard], ledger: Ledger) -> None:
    """Refuse shards whose size or version changed since they were committed.

    Raises:
        ChangedShard: names them.
    """
    changed = [
        f"  {shard.id}: {marker.size} bytes, version {marker.version} when stored; now {shard.size}, {shard.version}"
        for shard in shards
        if shard.id in ledger.shards
        for marker in ledger.shards[shard.id].markers[-1:]
        if (marker.size, marker.version) != (shard.size, shard.version)
    ]
    listed = {shard.id for shard in shards}
    kept = {(state.markers[-1].size, state.markers[-1].version): id for id, state in ledger.shards.items()}
    for shard in shards:
        old = kept.get((shard.size, shard.version))
        if (
            shard.id not in ledger.shards
            and old is not None
            and old not in listed
            and _same_file(old, shard.id)
        ):
            raise ChangedShard(
                f"input: {shard.id} is stored already, as {old}: the folder that ids are relative to has changed;"
                " state input.root, so that it stays the same when patterns are added"
            )
    if changed:
        raise ChangedShard(
            "input shards changed after their rows were stored:\n"
            + "\n".join(changed)
            + "\nPut the old files back, or give the new ones other names; stored rows are never replaced."
        )


def _same_file(one: str, other: str) -> bool:
    return one.endswith(f"/{other}") or other.endswith(f"/{one}")


def unfinished(shards: Sequence[Shard], ledger: Ledger) -> list[Assignment]:
    """Shards that have no outcome yet, and the rest of those that a limit cut."""
    todo = []
    for shard in shards:
        state = ledger.shards.get(shard.id)
        if state is None:
            todo.append(Assignment(shard))
        elif not state.complete:
            todo.append(Assignment(shard, round=state.next_round, start=state.stop, done=state.stop))
    return todo


def failed(
    shards: Sequence[Shard], ledger: Ledger, index: pa.Table, reasons: Collection[str] = PASSING_REASONS
) -> list[Assignment]:
    """Retries of complete shards: samples whose newest outcome has one of these reasons, and shards set aside."""
    wanted = index.filter(pc.is_in(index["reason"], pa.array(list(reasons), index["reason"].type)))
    positions: dict[str, set[int]] = {}
    tails: dict[str, int] = {}
    for line in wanted.select(["shard", "key", "position"]).to_pylist():
        if line["key"] is None:
            tails[line["shard"]] = line["position"]
        else:
            positions.setdefault(line["shard"], set()).add(line["position"])
    return [
        Assignment(
            shard,
            round=ledger.shards[shard.id].next_round,
            start=tails.get(shard.id),
            only=frozenset(positions.get(shard.id, ())),
            done=ledger.shards[shard.id].stop,
        )
        for shard in shards
        if shard.id in ledger.shards
        and ledger.shards[shard.id].complete
        and (shard.id in tails or shard.id in positions)
    ]


def limited(assignments: Sequence[Assignment], limit: int, spec: Input) -> list[Assignment]:
    """The first `limit` samples of the assignments; the last of them may stop inside its shard."""
    kept: list[Assignment] = []
    for assignment in assignments:
        if limit <= 0:
            break
        if assignment.only:  # a retry is done whole
            kept.append(assignment)
            limit -= len(assignment.only)
            continue
        start = assignment.start or 0
        stop = start + limit
        rows = count_samples(assignment.shard, spec, stop) - start
        kept.append(replace(assignment, stop=stop) if rows >= limit else assignment)
        limit -= rows
    return kept


def left_by(fs: AbstractFileSystem, root: str, winner: Marker, assignment: Assignment) -> Assignment | None:
    """What another attempt's marker of the same round leaves of an assignment; None for nothing.

    It may have stopped at a limit, or retried other samples: of a retry, its index says which it did. A sample that it
    did is not done again, since stored rows are never replaced.

    Raises:
        OSError: that index could not be read.
    """
    if not assignment.only:
        if winner.complete or (assignment.stop is not None and winner.stop >= assignment.stop):
            return None
        return replace(assignment, round=winner.round + 1, start=winner.stop, done=winner.stop)
    if not winner.rows:  # set aside: no driver must try it another three times
        return None
    done = set(read_parquet(fs, root, winner.index, ["position"])["position"].to_pylist())
    start = assignment.start
    if start is not None and any(position >= start for position in done):
        start = None
    only = assignment.only - done
    if not only and start is None:
        return None
    return replace(assignment, round=winner.round + 1, start=start, only=only)
