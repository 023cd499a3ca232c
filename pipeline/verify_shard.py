"""One shard's markers, claims and index records: do they agree, and is every sample there once?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import ValidationError

from pipeline.index import newest
from pipeline.verify_objects import Fault, Objects, Rows
from schemas.layout import OBJECTS_SCHEMA, claim_path, index_schema
from schemas.receipts import Claim, FileRef, Marker


@dataclass(frozen=True)
class Checked:
    """A shard after its records were checked; its blocks and pooled vectors are left."""

    faults: list[Fault]
    rounds: list[Rows]
    records: int


class ShardCheck:
    """Checks all rounds of a shard together.

    Args:
        objects: of the store.
    """

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._manifest = objects.manifest
        self._schema = index_schema(self._manifest.groups, scores=self._manifest.scored)

    def __call__(self, markers: Sequence[Marker]) -> Checked:
        """`markers` are one shard's, sorted by round."""
        faults: list[Fault] = []
        rounds: list[Rows] = []
        tables: list[pa.Table] = []
        for place, marker in enumerate(markers):
            if marker.round != place:
                problem = (
                    f"the shard's marker number {place} is of round {marker.round}: one before it is gone"
                )
                faults.append(Fault(marker.shard, _name(marker), problem))
            faults += self._check_marker(marker)
            index = self._table(marker, marker.index, self._schema)
            objects = self._table(marker, marker.objects, OBJECTS_SCHEMA)
            faults += [found for found in (index, objects) if isinstance(found, Fault)]
            if isinstance(index, Fault):
                continue
            tables.append(index)
            faults += self._check_records(marker, index)
            if not isinstance(objects, Fault):
                rounds.append(self._rows(marker, index, objects))
        if len(tables) == len(markers) == markers[-1].round + 1:
            faults += _check_samples(markers, pa.concat_tables(tables))
        return Checked(faults, rounds, sum(map(len, tables)))

    def _table(self, marker: Marker, ref: FileRef, schema: pa.Schema) -> pa.Table | Fault:
        data = self._objects.fetch(marker.shard, ref)
        if isinstance(data, Fault):
            return data
        try:
            table = pq.read_table(pa.BufferReader(data))
        except pa.ArrowException as error:
            return Fault(marker.shard, ref.path, f"cannot be decoded: {error}")
        if not table.schema.equals(schema):
            return Fault(marker.shard, ref.path, f"has columns {table.schema.names}, not {schema.names}")
        return table

    def _check_marker(self, marker: Marker) -> Iterator[Fault]:
        if marker.identity != self._manifest.fingerprint:
            problem = (
                f"is of identity {marker.identity[:12]}, the manifest of {self._manifest.fingerprint[:12]}"
            )
            yield Fault(marker.shard, _name(marker), problem)
        needed = -(-marker.rows // self._manifest.rows_per_extent)
        if len(marker.extents) != needed:
            problem = f"has {marker.rows} rows, which take {needed} extents, but names {len(marker.extents)}"
            yield Fault(marker.shard, _name(marker), problem)
        for extent in marker.extents:
            claimed = self._claim_problem(marker, extent)
            if claimed is not None:
                yield Fault(marker.shard, claim_path(extent), claimed)

    def _claim_problem(self, marker: Marker, extent: int) -> str | None:
        wanted = Claim(extent=extent, shard=marker.shard, round=marker.round, attempt=marker.attempt)
        try:
            data = self._objects.fs.cat_file(f"{self._objects.root}/{claim_path(extent)}")
            claim = Claim.model_validate_json(data)
        except FileNotFoundError:
            return "is missing, so another attempt could claim these committed rows"
        except (OSError, ValidationError) as error:
            return f"cannot be read as a claim: {type(error).__name__}"
        if claim != wanted:
            return f"is of attempt {claim.attempt} at round {claim.round} of {claim.shard!r}, not of the marker's"
        return None

    def _check_records(self, marker: Marker, index: pa.Table) -> Iterator[Fault]:
        for column, wanted in (("shard", marker.shard), ("round", marker.round), ("attempt", marker.attempt)):
            strange = set(index[column].unique().to_pylist()) - {wanted}
            if strange:
                yield Fault(marker.shard, marker.index.path, f"has records of {column} {sorted(strange)}")
        counts = Counter(reason or "ok" for reason in index["reason"].to_pylist())
        if counts != Counter(marker.counts):
            problem = f"counts {dict(counts)} by reason, its marker {marker.counts}"
            yield Fault(marker.shard, marker.index.path, problem)
        rows = index["row"].drop_null().to_numpy()
        if len(rows) != marker.rows:
            yield Fault(marker.shard, marker.index.path, f"has {len(rows)} rows, its marker {marker.rows}")
        for column in ("row", "position"):
            if twice := _repeated(index.filter(pc.is_valid(index["key"]))[column]):
                yield Fault(marker.shard, marker.index.path, f"names {column} {_some(twice)} more than once")
        outside = rows[~np.isin(rows // self._manifest.rows_per_extent, marker.extents)]
        if len(outside):
            problem = f"row {_some(outside.tolist())} lies outside the extents {marker.extents} of the marker"
            yield Fault(marker.shard, marker.index.path, problem)
        if not pc.is_valid(index["row"]).equals(pc.is_valid(index["key"])):
            yield Fault(marker.shard, marker.index.path, "has samples without a row, or rows without a key")
        good = [line["status"] == "ok" for line in index.select(["status"]).to_pylist()]
        groups = [all(one["status"] == "ok" for one in line.values()) for line in index["groups"].to_pylist()]
        if good != groups:
            yield Fault(marker.shard, marker.index.path, "its statuses disagree with those of the groups")

    def _rows(self, marker: Marker, index: pa.Table, objects: pa.Table) -> Rows:
        index = index.filter(pc.is_valid(index["row"])).combine_chunks()
        good = {
            group: pc.equal(pc.struct_field(index["groups"], [group, "status"]), "ok").to_numpy()
            for group in self._manifest.groups
        }
        refs = {line["path"]: FileRef(**line) for line in objects.to_pylist()}
        return Rows(marker, index["row"].to_numpy(), good, refs)


def _check_samples(markers: Sequence[Marker], records: pa.Table) -> Iterator[Fault]:
    """Over all rounds: every position has an outcome, and no two samples share a key."""
    shard = markers[0].shard
    samples = newest(records, {shard: markers[-1].round})
    samples = samples.filter(pc.is_valid(samples["key"]))
    stop = max(marker.stop for marker in markers)
    if missing := sorted(set(range(stop)) - set(samples["position"].to_pylist())):
        yield Fault(shard, "index", f"has no record of position {_some(missing)}, of {stop} committed")
    named = samples.filter(pc.invert(pc.equal(pc.fill_null(samples["reason"], "ok"), "duplicate-key")))
    if twice := _repeated(named["key"]):
        yield Fault(shard, "index", f"key {_some(twice)} names more than one sample")


def _repeated(column: pa.ChunkedArray) -> list[object]:
    return [line["values"] for line in pc.value_counts(column).to_pylist() if line["counts"] > 1]


def _some(values: Sequence[object]) -> str:
    more = f" and {len(values) - 5} more" if len(values) > 5 else ""
    return ", ".join(map(repr, values[:5])) + more


def _name(marker: Marker) -> str:
    return f"marker of round {marker.round}"
