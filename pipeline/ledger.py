"""What a store has committed: its markers, read from the latest compaction and the objects that came after it."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from fsspec import AbstractFileSystem
from pydantic import ValidationError

from pipeline import storage
from pipeline.tables import put, read_parquet, to_parquet
from schemas.layout import COMPACT, MARKERS, index_schema, marker_name, parse_marker
from schemas.receipts import Compaction, FileRef, Manifest, Marker

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

    @property
    def markers(self) -> list[Marker]:
        """All of them."""
        return [marker for state in self.shards.values() for marker in state.markers]


def read_ledger(url: str) -> Ledger:
    """Everything committed to a store by now."""
    fs, root = storage.open_fs(url)
    sequence, compaction, compacted = _latest_compaction(fs, root)
    names = [
        name
        for name in storage.names(fs, f"{root}/{MARKERS}")
        if parse_marker(name) and name not in compacted
    ]
    with ThreadPoolExecutor(_READERS) as pool:
        data = list(pool.map(lambda name: fs.cat_file(f"{root}/{MARKERS}/{name}"), names))
    fresh = [parse(f"{MARKERS}/{name}", text) for name, text in zip(names, data, strict=True)]
    shards: dict[str, ShardState] = {}
    for marker in sorted([*compacted.values(), *fresh], key=lambda marker: marker.round):
        shards.setdefault(marker.shard, ShardState()).markers.append(marker)
    return Ledger(shards, compaction, sequence, fresh)


def read_index(url: str, manifest: Manifest, ledger: Ledger) -> pa.Table:
    """The newest outcome of every sample, and of every shard that failed as such, sorted by shard and position."""
    fs, root = storage.open_fs(url)
    refs = [
        *(ledger.compaction.indexes if ledger.compaction else []),
        *(marker.index for marker in ledger.fresh),
    ]
    with ThreadPoolExecutor(_READERS) as pool:
        tables = list(pool.map(lambda ref: read_parquet(fs, root, ref), refs))
    schema = index_schema(manifest.groups, scores=manifest.scored)
    last_round = {shard: state.markers[-1].round for shard, state in ledger.shards.items()}
    return newest(pa.concat_tables(tables) if tables else schema.empty_table(), last_round)


def newest(index: pa.Table, last_round: Mapping[str, int]) -> pa.Table:
    """Of several rounds' records, the last of each sample; a shard's own record (null key) only from its last round."""
    index = index.append_column("of_shard", pc.is_null(index["key"]))
    order = ["shard", "position", "of_shard", "round"]
    index = index.sort_by([(name, "ascending") for name in order]).combine_chunks()
    shard, position, of_shard, round_ = (index[name].to_numpy() for name in order)
    keep = np.ones(len(index), bool)
    keep[:-1] = (shard[:-1] != shard[1:]) | (position[:-1] != position[1:]) | (of_shard[:-1] != of_shard[1:])
    for place in np.flatnonzero(of_shard):
        keep[place] &= round_[place] == last_round[shard[place]]
    return index.filter(pa.array(keep)).drop_columns("of_shard")


def compact(url: str, ledger: Ledger) -> None:
    """Put the markers and indexes that came since the last compaction into one file each."""
    if not ledger.fresh:
        return
    fs, root = storage.open_fs(url)
    sequence = ledger.sequence + 1
    with ThreadPoolExecutor(_READERS) as pool:
        tables = list(pool.map(lambda marker: read_parquet(fs, root, marker.index), ledger.fresh))
    listing = pa.table(
        {
            "name": [marker_name(marker.shard, marker.round) for marker in ledger.fresh],
            "marker": [marker.model_dump_json() for marker in ledger.fresh],
        }
    )
    before = ledger.compaction
    name = f"{sequence:08d}-{uuid.uuid4().hex}"

    def write(kind: str, table: pa.Table) -> FileRef:
        return put(fs, root, f"{COMPACT}/{name}-{kind}.parquet", to_parquet(table))

    after = Compaction(
        ledgers=[*(before.ledgers if before else []), write("ledger", listing)],
        indexes=[
            *(before.indexes if before else []),
            write("index", pa.concat_tables(tables)),
        ],
    )
    # Another driver may take this number first; its compaction is as good, and what is missing from it comes next.
    storage.create(fs, f"{root}/{COMPACT}/{sequence:08d}.json", after.to_bytes())


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


def _latest_compaction(fs: AbstractFileSystem, root: str) -> tuple[int, Compaction | None, dict[str, Marker]]:
    """Number and content of the newest compaction that is whole, with the markers in it by file name."""
    numbered = [name for name in storage.names(fs, f"{root}/{COMPACT}") if name.endswith(".json")]
    last = int(numbered[-1].partition(".")[0]) if numbered else -1
    for name in reversed(numbered):
        try:
            compaction = Compaction.model_validate_json(fs.cat_file(f"{root}/{COMPACT}/{name}"))
            tables = [read_parquet(fs, root, ref) for ref in compaction.ledgers]
            for ref in compaction.indexes:
                _check_there(fs, root, ref)
        except (ValidationError, FileNotFoundError, storage.StorageError):
            continue
        markers = {
            name: Marker.model_validate_json(text)
            for table in tables
            for name, text in zip(table["name"].to_pylist(), table["marker"].to_pylist(), strict=True)
        }
        return last, compaction, markers
    return last, None, {}


def _check_there(fs: AbstractFileSystem, root: str, ref: FileRef) -> None:
    if fs.info(f"{root}/{ref.path}")["size"] != ref.size:
        raise storage.StorageError(f"{ref.path}: is not as long as when it was written")
