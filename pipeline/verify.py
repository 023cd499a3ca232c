"""Is a store what its markers say? Every committed object, record and row is checked; nothing is changed.

Markers, receipts, blocks and pooled tables are checked in parallel, one object in memory at a time per thread. What
is committed while this runs is left to the next time.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import pyarrow as pa
from pydantic import ValidationError

from pipeline import storage
from pipeline.store import read_manifest
from pipeline.tables import read_parquet
from pipeline.verify_objects import Fault, Job, Objects
from pipeline.verify_shard import ShardCheck
from schemas.layout import COMPACT, MARKERS, marker_name, parse_marker
from schemas.receipts import Compaction, FileRef, Marker

__all__ = ["Fault", "Verifier"]

T = TypeVar("T")
R = TypeVar("R")

_MEMORY_BYTES = 2**30  # for the blocks that all threads hold together
_MAX_THREADS = 16


class Verifier:
    """Checks one store.

    Args:
        url: of the store.
        fast: compare sizes instead of contents; read no features.

    Raises:
        StoreError: no store there, or one of another schema version.
    """

    def __init__(self, url: str, *, fast: bool) -> None:
        self.checked: Counter[str] = Counter()
        """What was looked at so far, by kind."""
        self._manifest = read_manifest(url)
        self._fs, self._root = storage.open_fs(url)
        self._objects = Objects(url, self._manifest, self.checked, fast=fast)
        largest = max(layout.row_bytes for layout in self._manifest.arrays) * self._manifest.rows_per_block
        self._threads = max(1, min(_MAX_THREADS, _MEMORY_BYTES // (2 * largest)))

    def faults(self) -> Iterator[Fault]:
        """Everything that is wrong, as it is found."""
        compaction = self._newest_compaction()  # before the markers, so that it cannot know more than they do
        with ThreadPoolExecutor(self._threads) as pool:
            markers, damaged = self._read_markers(pool)
            yield from damaged
            yield from _shared_extents(markers.values())
            yield from self._objects.check_arrays(markers.values())
            for found in self._bounded(pool, lambda job: job(), self._jobs(pool, markers.values())):
                yield from found
            if compaction is not None:
                yield from self._check_compaction(pool, *compaction, markers)

    def _read_markers(self, pool: ThreadPoolExecutor) -> tuple[dict[str, Marker], list[Fault]]:
        """All markers that can be understood, by file name, and a fault for each of the others."""
        names = [name for name in storage.names(self._fs, f"{self._root}/{MARKERS}") if parse_marker(name)]
        markers: dict[str, Marker] = {}
        faults: list[Fault] = []
        for name, found in zip(names, self._bounded(pool, self._read_marker, names), strict=True):
            if isinstance(found, Marker):
                markers[name] = found
            else:
                faults.append(found)
        self.checked["markers"] += len(names)
        return markers, faults

    def _read_marker(self, name: str) -> Marker | Fault:
        path = f"{MARKERS}/{name}"
        try:
            marker = Marker.model_validate_json(self._fs.cat_file(f"{self._root}/{path}"))
        except (ValidationError, OSError) as error:
            return Fault(None, path, f"cannot be read as a marker: {_first_line(error)}")
        if name != marker_name(marker.shard, marker.round):
            return Fault(
                marker.shard, path, f"speaks of round {marker.round} of {marker.shard!r}, its name does not"
            )
        return marker

    def _jobs(self, pool: ThreadPoolExecutor, markers: Iterable[Marker]) -> Iterator[Job]:
        """The work, in parts that hold no more than one object each."""
        shards: dict[str, list[Marker]] = defaultdict(list)
        for marker in sorted(markers, key=lambda marker: (marker.shard, marker.round)):
            shards[marker.shard].append(marker)
        self.checked["shards"] += len(shards)
        check = ShardCheck(self._objects)
        for shard in self._bounded(pool, check, shards.values()):
            self.checked["records"] += shard.records
            yield partial(list, shard.faults)
            for rows in shard.rounds:
                self.checked["rows"] += len(rows.rows)
                yield from self._objects.jobs(rows)

    def _bounded(
        self, pool: ThreadPoolExecutor, function: Callable[[T], R], items: Iterable[T]
    ) -> Iterator[R]:
        """Like `pool.map`, but takes items only as their turn comes; results in order."""
        waiting: deque[Future[R]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * self._threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _newest_compaction(self) -> tuple[str, Compaction | Fault] | None:
        names = [
            name for name in storage.names(self._fs, f"{self._root}/{COMPACT}") if name.endswith(".json")
        ]
        if not names:
            return None
        path = f"{COMPACT}/{names[-1]}"
        try:
            return path, Compaction.model_validate_json(self._fs.cat_file(f"{self._root}/{path}"))
        except (ValidationError, OSError) as error:
            problem = f"cannot be read as a compaction: {_first_line(error)}; remove it, markers replace it"
            return path, Fault(None, path, problem)

    def _check_compaction(
        self, pool: ThreadPoolExecutor, path: str, compaction: Compaction | Fault, markers: dict[str, Marker]
    ) -> Iterator[Fault]:
        """Its markers and records are those of the marker objects, each once and in the same order."""
        if isinstance(compaction, Fault):
            yield compaction
            return
        self.checked["compactions"] += 1
        seen: set[str] = set()
        for ledger_ref, index_ref in zip(compaction.ledgers, compaction.indexes, strict=True):
            try:
                ledger, index = (read_parquet(self._fs, self._root, ref) for ref in (ledger_ref, index_ref))
            except OSError as error:
                yield Fault(None, path, f"needs a file that is missing or damaged: {_first_line(error)}")
                continue
            held = dict(zip(ledger["name"].to_pylist(), ledger["marker"].to_pylist(), strict=True))
            for name in seen & held.keys():
                yield Fault(None, path, f"holds marker {name} twice")
            seen |= held.keys()
            yield from _compare_markers(path, held, markers)
            known = [markers[name] for name in held if name in markers]
            yield from self._compare_records(pool, path, known, index)

    def _compare_records(
        self, pool: ThreadPoolExecutor, path: str, markers: Sequence[Marker], index: pa.Table
    ) -> Iterator[Fault]:
        attempts = set(index["attempt"].unique().to_pylist())
        for attempt in attempts - {marker.attempt for marker in markers}:
            yield Fault(None, path, f"holds records of attempt {attempt}, which no marker commits")
        start = 0
        for marker, table in zip(
            markers, self._bounded(pool, lambda marker: self._table(marker.index), markers), strict=True
        ):
            if table is None:  # named with its marker
                start += sum(marker.counts.values())
                continue
            if not index.slice(start, len(table)).equals(table):
                problem = f"its records of round {marker.round} differ from those that the marker commits"
                yield Fault(marker.shard, path, problem)
            start += len(table)

    def _table(self, ref: FileRef) -> pa.Table | None:
        try:
            return read_parquet(self._fs, self._root, ref)
        except (OSError, pa.ArrowInvalid):
            return None


def _shared_extents(markers: Iterable[Marker]) -> Iterator[Fault]:
    owners: dict[int, Marker] = {}
    for marker in markers:
        for extent in marker.extents:
            owner = owners.setdefault(extent, marker)
            if owner is not marker:
                problem = f"belongs to round {owner.round} of {owner.shard!r} and to round {marker.round} of this one"
                yield Fault(marker.shard, f"extent {extent}", problem)


def _compare_markers(path: str, held: dict[str, str], markers: dict[str, Marker]) -> Iterator[Fault]:
    for name, text in held.items():
        if name not in markers:
            yield Fault(None, f"{MARKERS}/{name}", f"is gone or damaged, but {path} holds it")
        elif Marker.model_validate_json(text) != markers[name]:
            yield Fault(markers[name].shard, f"{MARKERS}/{name}", f"differs from what {path} holds")


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
