"""A store's index: the newest outcome of every sample, out of the compacted and the fresh records.

At 10^8 rows all columns take tens of GB of memory, so readers name the few that they need, and what they keep. A shard
that was done in one round, as nearly all are, is taken as it lies; only shards with several rounds are sorted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import storage
from pipeline.ledger import Ledger
from pipeline.tables import parse_parquet, read
from schemas.layout import index_schema
from schemas.receipts import FileRef, Manifest

_READERS = 32


class Where(NamedTuple):
    """What is kept of the newest outcomes."""

    columns: Sequence[str]
    """Those that the condition speaks of."""
    condition: pc.Expression


_ORDER = ["shard", "position", "key", "round"]
"""What tells which of several records of a sample is the newest."""


def read_index(
    url: str,
    manifest: Manifest,
    ledger: Ledger,
    columns: Sequence[str] | None = None,
    where: Where | None = None,
) -> pa.Table:
    """The newest outcome of every sample, and of every shard that failed as such, sorted by shard and position.

    Args:
        url: of the store.
        manifest: the store's.
        ledger: what is committed.
        columns: of `index_schema`, in this order; default: all.
        where: which of the newest outcomes to keep; default: all.

    Raises:
        storage.DamagedError: an object is not what was committed.
    """
    fs, root = storage.open_fs(url)
    schema = index_schema(manifest.groups, scores=manifest.scored)
    wanted = schema.names if columns is None else list(columns)
    needed = [name for name in schema.names if name in {"shard", *wanted, *(where.columns if where else ())}]
    again = {shard for shard, state in ledger.shards.items() if len(state.markers) > 1}

    def pieces(ref: FileRef) -> list[tuple[str, pa.Table]]:
        """Records by shard: of one with a single round what is wanted of them, of others all that sorting takes."""
        data = read(fs, root, ref)
        table = parse_parquet(data, needed)
        several = pc.is_in(table["shard"], pa.array(list(again), table["shard"].type))
        if not pc.any(several, min_count=0).as_py():
            return list(_by_shard(_kept(table, where, wanted)))
        full = parse_parquet(data, [*needed, *(name for name in _ORDER if name not in needed)])
        single = _kept(full.filter(pc.invert(several)), where, wanted)
        return [*_by_shard(single), *_by_shard(full.filter(several))]

    refs = [
        *(ledger.compaction.indexes if ledger.compaction else []),
        *(marker.index for marker in ledger.fresh),
    ]
    found: dict[str, list[pa.Table]] = defaultdict(list)
    with ThreadPoolExecutor(_READERS) as pool:
        for some in pool.map(pieces, refs):
            for shard, piece in some:
                found[shard].append(piece)
    for shard in again & found.keys():
        last = {shard: ledger.shards[shard].markers[-1].round}
        found[shard] = [_kept(newest(pa.concat_tables(found[shard]), last), where, wanted)]
    empty = pa.schema([schema.field(name) for name in dict.fromkeys(["shard", *wanted])]).empty_table()
    ordered = [piece for shard in sorted(found) for piece in found[shard]]
    return pa.concat_tables([empty, *ordered]).select(wanted).combine_chunks()


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


def _by_shard(table: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    """A table's runs of one shard, without a copy."""
    start = 0
    runs = pc.run_end_encode(table["shard"].combine_chunks())
    for shard, end in zip(runs.values.to_pylist(), runs.run_ends.to_pylist(), strict=True):
        yield shard, table.slice(start, end - start)
        start = end


def _kept(table: pa.Table, where: Where | None, wanted: Collection[str]) -> pa.Table:
    """Records that are wanted, with the wanted columns and their shard."""
    table = table if where is None else table.filter(where.condition)
    return table.select(list(dict.fromkeys(["shard", *wanted])))
