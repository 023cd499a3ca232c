"""How far a job is, from its store alone: markers, run records, heartbeats, a listing of the input. No Ray, no torch.

Nothing is written, so that the right to read is enough. Times are those that the store gave its objects.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import TypeVar

import pyarrow.compute as pc
from fsspec import AbstractFileSystem
from pydantic import ValidationError

from pipeline import ledger, pace, storage, times
from pipeline.index import read_index
from pipeline.ledger import Ledger, ShardState
from pipeline.listing import Shard, list_shards
from pipeline.store import read_manifest
from schemas.layout import DRIVERS, JOB, LEASES, RUNS
from schemas.lease import Heartbeat
from schemas.receipts import Manifest, Receipt, RunRecord
from schemas.spec import Input
from schemas.status import DriverSeen, Rows, Shards, Status

R = TypeVar("R", bound=Receipt)

_READERS = 32


def look(url: str, patterns: Sequence[str] = (), usd_per_hour: float | None = None) -> Status:
    """The state of a store now.

    Args:
        url: of the store.
        patterns: of the input's shards; default: as in the spec that made the store.
        usd_per_hour: price of an hour of all that works on the job.

    Raises:
        StoreError: no store there, or one of another schema version.
        ValueError: `patterns` name nothing, or what they name cannot be listed.
    """
    manifest, committed = read_manifest(url), ledger.read_ledger(url)
    fs, root = storage.open_fs(url)
    now, notes = times.now(fs, root), list[str]()
    commits = pace.commits(committed)
    runs = _objects(fs, root, RUNS, RunRecord, notes)
    drivers = _drivers(fs, root, now, notes)
    inputs = _inputs(manifest, patterns, committed, notes)
    rows = _rows(url, manifest, committed, None if inputs is None else pace.left_rows(inputs, committed))
    rate = pace.rate(commits, runs, _taken(fs, root))
    worked = sum(stretch.seconds for stretch in pace.stretches([run for _, run in runs]))
    return Status(
        store=url,
        at=datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds"),
        shards=_shards(committed, inputs),
        rows=rows,
        bytes_of_rows=rows.good * sum(array.row_bytes for array in manifest.arrays),
        last_commit_s=max(0.0, now - commits[-1].time) if commits else None,
        rate=rate,
        left=pace.left(rows.left, rate, usd_per_hour),
        drivers=drivers,
        runs=len(runs),
        worked_s=worked,
        spent_usd=None if usd_per_hour is None else worked / 3600 * usd_per_hour,
        last_run=runs[-1][1] if runs else None,
        notes=notes,
    )


def _shards(committed: Ledger, inputs: Sequence[Shard] | None) -> Shards:
    states = committed.shards.values()
    left = None if inputs is None else sum(not pace.done(committed.shards.get(shard.id)) for shard in inputs)
    return Shards(
        done=sum(state.complete for state in states),
        set_aside=sum(state.complete and state.broken for state in states),
        cut=sum(not state.complete for state in states),
        known=None if inputs is None else len(inputs),
        left=left,
    )


def _rows(url: str, manifest: Manifest, committed: Ledger, left: int | None) -> Rows:
    states = committed.shards.values()
    good, samples = sum(state.good for state in states), sum(state.stop for state in states)
    reasons: Counter[str] = Counter()
    again: dict[str, ShardState] = {}
    for id, state in committed.shards.items():
        if len(state.markers) == 1:
            reasons.update(state.markers[0].counts)
        else:  # later rounds may speak of samples that earlier ones counted
            again[id] = state
    reasons.update(_newest_reasons(url, manifest, again))
    del reasons["ok"]
    return Rows(good=good, bad=samples - good, reasons=dict(reasons.most_common()), left=left)


def _newest_reasons(url: str, manifest: Manifest, shards: dict[str, ShardState]) -> Counter[str]:
    """Records of these shards by the reason of their newest outcome, as their index has them."""
    if not shards:
        return Counter()
    markers = [marker for state in shards.values() for marker in state.markers]
    index = read_index(url, manifest, Ledger(shards, None, -1, markers), ["reason"])
    counts = pc.value_counts(pc.fill_null(index["reason"], "ok"))
    return Counter({entry["values"]: entry["counts"] for entry in counts.to_pylist()})


def _inputs(
    manifest: Manifest, patterns: Sequence[str], committed: Ledger, notes: list[str]
) -> list[Shard] | None:
    """The input's shards as they are now; None, and a note, where the spec's own pattern cannot be listed."""
    try:
        spec = Input.model_validate(manifest.spec.get("input"))
        shards = list_shards(spec.model_copy(update={"shards": list(patterns)}) if patterns else spec)
    except (ValueError, OSError) as error:
        if patterns:
            raise
        notes.append(
            f"what is left is not known, since the input could not be listed; give --shards ({error})"
        )
        return None
    if committed.shards and not any(shard.id in committed.shards for shard in shards):
        known = min(committed.shards)
        notes.append(
            f"none of the shards that are stored, such as {known}, is among the {len(shards)} listed, such as"
            f" {shards[0].id}: ids are paths below the folder that all patterns share, so give the job's own pattern"
        )
    return shards


def _taken(fs: AbstractFileSystem, root: str) -> float:
    """When an exclusive driver last took the job."""
    leases = times.written(fs, f"{root}/{LEASES}")
    return max((time for name, time in leases.items() if name.startswith(f"{JOB}-")), default=0.0)


def _drivers(fs: AbstractFileSystem, root: str, now: float, notes: list[str]) -> list[DriverSeen]:
    """Who gives signs of life, or did so until it died."""
    return [
        DriverSeen(
            **beat.model_dump(include={"driver", "host", "pid", "mode", "command", "started"}),
            silent_s=max(0.0, now - time),
            alive=now - time <= beat.patience_s,
        )
        for time, beat in _objects(fs, root, DRIVERS, Heartbeat, notes)
    ]


def _objects(
    fs: AbstractFileSystem, root: str, folder: str, kind: type[R], notes: list[str]
) -> list[tuple[float, R]]:
    """(time, content) of a folder's JSON objects, by time. What another release wrote, or is gone now, is left out."""
    written = {
        name: time for name, time in times.written(fs, f"{root}/{folder}").items() if name.endswith(".json")
    }
    with ThreadPoolExecutor(_READERS) as pool:
        data = list(pool.map(_or_none(fs.cat_file), (f"{root}/{folder}/{name}" for name in written)))
    found, strange = list[tuple[float, R]](), 0
    for time, text in zip(written.values(), data, strict=True):
        try:
            if text is not None:
                found.append((time, kind.model_validate_json(text)))
        except ValidationError:
            strange += 1
    if strange:
        notes.append(f"{strange} objects in {folder}/ are not of this release and are left out")
    return sorted(found, key=lambda one: one[0])


def _or_none(read: Callable[[str], bytes]) -> Callable[[str], bytes | None]:
    def tried(path: str) -> bytes | None:
        try:
            return read(path)
        except FileNotFoundError:  # a driver that has just ended
            return None

    return tried
