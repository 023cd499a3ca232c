"""What a store has committed: its markers, read from the latest compaction and the objects that came after it."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pyarrow as pa
from fsspec import AbstractFileSystem
from pydantic import ValidationError

from pipeline import storage, times
from pipeline.tables import put, read_parquet, to_parquet
from schemas.layout import COMPACT, MARKERS, marker_name, parse_marker
from schemas.receipts import Compaction, FileRef, Marker

_READERS = 32


@dataclass
class ShardState:
    """All rounds of one shard, in order."""

    markers: list[Marker] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether every sample has an outcome."""
        return any(marker.complete for marker in self.markers)

    @property
    def good(self) -> int:
        """Samples whose newest outcome is good in all groups: rounds never do a good one again."""
        return sum(marker.counts.get("ok", 0) for marker in self.markers)

    @property
    def broken(self) -> bool:
        """Whether the shard has a record of its own: it was set aside, or could not be read to its end."""
        return sum(self.markers[-1].counts.values()) > self.markers[-1].rows

    @property
    def stop(self) -> int:
        """Samples at positions before this have an outcome."""
        return max(marker.stop for marker in self.markers)

    @property
    def next_round(self) -> int:
        """The round that a further attempt would commit."""
        return self.markers[-1].round + 1


@dataclass
class Ledger:
    """Committed markers by shard id, and the compaction that most of them came from."""

    shards: dict[str, ShardState]
    compaction: Compaction | None
    sequence: int
    """Number of the compaction, -1 for none."""
    fresh: list[Marker]
    """Markers that the compaction does not hold yet."""
    written: dict[str, float] = field(default_factory=dict)
    """When each marker was stored, by the name of its object: seconds since 1970, by the store's clock."""

    @property
    def markers(self) -> list[Marker]:
        """All of them."""
        return [marker for state in self.shards.values() for marker in state.markers]


def read_ledger(url: str) -> Ledger:
    """Everything committed to a store by now."""
    fs, root = storage.open_fs(url)
    sequence, compaction, tables = _latest_compaction(fs, root, ["name", "marker"])
    compacted = {
        name: Marker.model_validate_json(text)
        for table in tables
        for name, text in zip(table["name"].to_pylist(), table["marker"].to_pylist(), strict=True)
    }
    written = times.written(fs, f"{root}/{MARKERS}")
    names = sorted(name for name in written if parse_marker(name) and name not in compacted)
    with ThreadPoolExecutor(_READERS) as pool:
        data = list(pool.map(lambda name: fs.cat_file(f"{root}/{MARKERS}/{name}"), names))
    fresh = [parse(f"{MARKERS}/{name}", text) for name, text in zip(names, data, strict=True)]
    shards: dict[str, ShardState] = {}
    for marker in sorted([*compacted.values(), *fresh], key=lambda marker: marker.round):
        shards.setdefault(marker.shard, ShardState()).markers.append(marker)
    return Ledger(shards, compaction, sequence, fresh, written)


def compact(url: str, markers: Sequence[Marker]) -> bool:
    """Put markers, and their indexes, that no compaction holds yet into one file each.

    Of what is compacted already the ledgers are fetched, for their names, and indexes only looked for.
    False where another driver's compaction took the number first: it is as good, and what it lacks comes next.
    """
    fs, root = storage.open_fs(url)
    last, before, tables = _latest_compaction(fs, root, ["name"])
    names = {name for table in tables for name in table["name"].to_pylist()}
    fresh = [marker for marker in markers if marker_name(marker.shard, marker.round) not in names]
    if not fresh:
        return True
    with ThreadPoolExecutor(_READERS) as pool:
        indexes = list(pool.map(lambda marker: read_parquet(fs, root, marker.index), fresh))
    listing = pa.table(
        {
            "name": [marker_name(marker.shard, marker.round) for marker in fresh],
            "marker": [marker.model_dump_json() for marker in fresh],
        }
    )
    sequence = last + 1
    name = f"{sequence:08d}-{uuid.uuid4().hex}"

    def write(kind: str, table: pa.Table) -> FileRef:
        return put(fs, root, f"{COMPACT}/{name}-{kind}.parquet", to_parquet(table))

    after = Compaction(
        ledgers=[*(before.ledgers if before else []), write("ledger", listing)],
        indexes=[
            *(before.indexes if before else []),
            write("index", pa.concat_tables(indexes)),
        ],
    )
    return storage.create(fs, f"{root}/{COMPACT}/{sequence:08d}.json", after.to_bytes())


def parse(path: str, text: bytes) -> Marker:
    """A marker out of an object.

    Raises:
        storage.StorageError: the object is no marker.
    """
    try:
        return Marker.model_validate_json(text)
    except ValidationError as error:
        raise storage.StorageError(
            f"{path}: {len(text)} bytes that are no marker of this release; markers are created whole and"
            " never changed, so restore the object or use the release that wrote it"
        ) from error


def _latest_compaction(
    fs: AbstractFileSystem, root: str, columns: list[str]
) -> tuple[int, Compaction | None, list[pa.Table]]:
    """Number of the newest compaction; content of the newest that is whole, and these columns of its ledgers."""
    numbered = [name for name in storage.names(fs, f"{root}/{COMPACT}") if name.endswith(".json")]
    last = int(numbered[-1].partition(".")[0]) if numbered else -1
    with ThreadPoolExecutor(_READERS) as pool:
        for name in reversed(numbered):
            try:
                compaction = Compaction.model_validate_json(fs.cat_file(f"{root}/{COMPACT}/{name}"))
                tables = list(pool.map(lambda ref: read_parquet(fs, root, ref, columns), compaction.ledgers))
                for _ in pool.map(lambda ref: _check_there(fs, root, ref), compaction.indexes):
                    pass  # consuming the results raises whatever is wrong
            except (ValidationError, FileNotFoundError, storage.DamagedError):
                continue  # not of an outage, which would have all of it compacted again
            return last, compaction, tables
    return last, None, []


def _check_there(fs: AbstractFileSystem, root: str, ref: FileRef) -> None:
    if fs.info(f"{root}/{ref.path}")["size"] != ref.size:
        raise storage.DamagedError(f"{ref.path}: is not as long as when it was written")
