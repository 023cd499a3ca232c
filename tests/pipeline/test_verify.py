"""Every fault is injected into a copy of a sound store, and must be named."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import zarr

from pipeline.batches import Assignment
from pipeline.verify import Fault, Verifier
from schemas.layout import array_path, claim_path, marker_name
from tests import stores
from tests.attempts import Draft, again, make_store, manifest, shard
from tests.stores import CHANNELS, TAPS, block, edit_marker, edit_table, marker_of

Damage = Callable[[Path], object]


def faults(store: Path | str, *, fast: bool = False) -> list[Fault]:
    return list(Verifier(str(store), fast=fast).faults())


@pytest.mark.parametrize("fast", [True, False])
def test_a_sound_store_has_no_faults(built: Path, fast: bool) -> None:
    """Whatever is checked holds for a store that a job just wrote, with a partial row and a block of nothing."""
    verifier = Verifier(str(built / "store"), fast=fast)
    assert list(verifier.faults()) == []
    # Three blocks an array: the fourth holds one failed row, so it is not stored. Two pooled tables.
    assert verifier.checked["objects"] == 4 * 3 + 2
    counted = {kind: verifier.checked[kind] for kind in ("shards", "markers", "records", "rows", "arrays")}
    assert counted == {"shards": 2, "markers": 2, "records": 10, "rows": 10, "arrays": 4}


def flip_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def index_of(store: Path, shard: str = "a.tar") -> Path:
    return store / marker_of(store, shard).index.path


def set_cell(column: str, place: int, value: object) -> Callable[[pa.Table], pa.Table]:
    def edit(table: pa.Table) -> pa.Table:
        values = table[column].to_pylist()
        values[place] = value
        return table.set_column(
            table.schema.get_field_index(column), column, pa.array(values, table.schema.field(column).type)
        )

    return edit


def duplicate_first(table: pa.Table) -> pa.Table:
    return pa.concat_tables([table, table.slice(0, 1)])


def spoil_good_row(store: Path) -> None:
    """Write NaN through zarr, with a receipt that fits: a fault that no checksum can see."""
    array = zarr.open_array(store / array_path("plain", TAPS[0]), mode="r+")
    array[5, 7] = np.nan
    renew_receipt(store, block(store, 1))


def renew_receipt(store: Path, path: Path) -> None:
    name = str(path.relative_to(store))
    new = stores.receipt(name, path.read_bytes())

    def edit(table: pa.Table) -> pa.Table:
        lines = [new if line["path"] == name else line for line in table.to_pylist()]
        return pa.Table.from_pylist(lines, table.schema)

    edit_table(store, "objects", edit)


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rename_marker(store: Path) -> None:
    (store / "markers" / marker_name("a.tar", 0)).rename(store / "markers" / marker_name("a.tar", 1))
    edit_marker(store, round_=1, round=1)


PLAIN_1 = f"features/plain/{TAPS[0]}/c/1/0/0/0"
CASES: dict[str, tuple[Damage, str]] = {
    "flipped byte": (lambda s: flip_byte(block(s, 1)), f"{PLAIN_1}: .*differ from those committed"),
    "truncated block": (
        lambda s: block(s, 1).write_bytes(block(s, 1).read_bytes()[:-7]),
        f"{PLAIN_1}: has [0-9]+ bytes, [0-9]+ were committed",
    ),
    "no block": (lambda s: block(s, 1).unlink(), f"{PLAIN_1}: is missing"),
    "block without receipt": (
        lambda s: edit_table(s, "objects", lambda table: table.slice(1)),
        r"features/caption/.*/c/0/0/0/0: was never written, but rows 0, 1, 2 should be in it",
    ),
    "block that should be empty": (
        lambda s: shutil.copytree(block(s, 1).parents[2], block(s, 3).parents[2]),
        f"sub/b.tar: features/plain/{TAPS[0]}/c/3/0/0/0: exists, but its attempt did not commit it",
    ),
    "NaN in a good row": (
        spoil_good_row,
        f"{PLAIN_1}: row 5: good by the index, but NaN",
    ),
    "no index": (lambda s: index_of(s).unlink(), r"a.tar: attempts/.*/index.parquet: is missing"),
    "damaged index": (lambda s: flip_byte(index_of(s)), r"index.parquet: its .* bytes differ"),
    "marker of another identity": (
        lambda s: edit_marker(s, identity="0" * 64),
        "marker of round 0: is of identity 000000000000, the manifest of",
    ),
    "damaged marker": (
        lambda s: (s / "markers" / marker_name("a.tar", 0)).write_text('{"schema_'),
        rf"markers/{marker_name('a.tar', 0)}: cannot be read as a marker: ValidationError",
    ),
    "lost marker": (
        lambda s: (s / "markers" / marker_name("a.tar", 0)).unlink(),
        rf"markers/{marker_name('a.tar', 0)}: is gone or damaged, but compact/00000000.json holds it",
    ),
    "marker under another name": (
        lambda s: edit_marker(s, shard="a.tar", round=1),
        "a.tar: markers/.*-0000.json: speaks of round 1 of 'a.tar', its name does not",
    ),
    "gap between rounds": (
        rename_marker,
        "a.tar: marker of round 1: .*one before it is gone",
    ),
    "shared extent": (
        lambda s: edit_marker(s, "sub/b.tar", extents=[0]),
        "extent 0: belongs to round 0 of '(a|sub/b).tar' and to round 0 of this one",
    ),
    "extent of another attempt": (
        lambda s: edit_marker(s, "sub/b.tar", extents=[0]),
        f"sub/b.tar: {claim_path(0)}: is of attempt .* of 'a.tar', not of the marker's",
    ),
    "no claim": (lambda s: (s / claim_path(1)).unlink(), f"{claim_path(1)}: is missing"),
    "too few extents": (lambda s: edit_marker(s, extents=[]), "6 rows, which take 1 extents, but names 0"),
    "row outside the extents": (
        lambda s: edit_table(s, "index", set_cell("row", 2, 7)),
        r"index.parquet: row 7 lies outside the extents \[0\]",
    ),
    "row twice": (
        lambda s: edit_table(s, "index", set_cell("row", 2, 1)),
        "index.parquet: names row 1 more than once",
    ),
    "record twice": (
        lambda s: edit_table(s, "index", duplicate_first),
        "index.parquet: names position 0 more than once",
    ),
    "key twice": (
        lambda s: edit_table(s, "index", set_cell("key", 2, "1")),
        "a.tar: index: key '1' names more than one sample",
    ),
    "position without record": (
        lambda s: edit_table(s, "index", lambda table: table.slice(0, 5)),
        "a.tar: index: has no record of position 5, of 6 committed",
    ),
    "record of another attempt": (
        lambda s: edit_table(s, "index", set_cell("attempt", 0, "somebody")),
        r"index.parquet: has records of attempt \['somebody'\]",
    ),
    "counts": (
        lambda s: edit_marker(s, counts={"ok": 6}),
        "by reason, its marker {'ok': 6}",
    ),
    "wrong status": (
        lambda s: edit_table(s, "index", set_cell("status", 0, "failed")),
        "index.parquet: its statuses disagree",
    ),
    "no vector": (
        lambda s: edit_table(s, "pooled", set_cell(f"plain/{TAPS[0]}", 2, None)),
        f"pooled.parquet: plain/{TAPS[0]}: vector and status disagree in row 2",
    ),
    "vectors of other rows": (
        lambda s: edit_table(s, "pooled", set_cell("row", 0, 99)),
        "pooled.parquet: its rows are not those of the index",
    ),
    "no pooled table": (lambda s: edit_marker(s, pooled=None), "round 0 has rows but no pooled table"),
    "no array": (
        lambda s: (s / array_path("plain", TAPS[0]) / "zarr.json").unlink(),
        f"features/plain/{TAPS[0]}/zarr.json: cannot be opened",
    ),
    "array of another dtype": (
        lambda s: edit_json(s / array_path("plain", TAPS[0]) / "zarr.json", data_type="float32"),
        f"features/plain/{TAPS[0]}/zarr.json: has row shape, dtype and block .*float32",
    ),
    "damaged compaction": (
        lambda s: (s / "compact" / "00000000.json").write_text("{"),
        "compact/00000000.json: cannot be read as a compaction",
    ),
    "compaction without its index": (
        lambda s: next((s / "compact").glob("*-index.parquet")).unlink(),
        "compact/00000000.json: needs a file that is missing or damaged: FileNotFoundError",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_every_fault_is_named(small_store: Path, case: str) -> None:
    """Damage that verify passes over is found years later, in a result."""
    damage, message = CASES[case]
    damage(small_store)
    found = [f"{fault.shard}: {fault.subject}: {fault.problem}" for fault in faults(small_store)]
    assert any(re.search(message, line) for line in found), found


def test_a_failed_row_that_holds_values(small_store: Path) -> None:
    """A reader who masks by the index never sees them; one who masks by NaN would."""
    path = small_store / array_path("caption", TAPS[0])
    array = zarr.open_array(path, mode="r+")
    array[4] = np.ones(array.shape[1:], "float16")  # a.tar's row without a caption
    renew_receipt(small_store, block(small_store, 1, group="caption"))
    assert [fault.problem for fault in faults(small_store)] == [
        "row 4: failed by the index, but not NaN throughout"
    ]


def test_fast_compares_sizes_only(small_store: Path) -> None:
    """It must find what is missing or cut, and may not read what is there."""
    flip_byte(block(small_store, 0))
    assert faults(small_store, fast=True) == []
    block(small_store, 1).write_bytes(b"short")
    block(small_store, 2).unlink()
    assert [fault.problem.partition(",")[0] for fault in faults(small_store, fast=True)] == [
        "has 5 bytes",
        "is missing",
    ]


def test_a_shrunk_array_is_a_warning(small_store: Path) -> None:
    """Drivers with an old view may shrink an array; FeatureStore reads on, and the next job mends it."""
    edit_json(small_store / array_path("plain", TAPS[0]) / "zarr.json", shape=[2, CHANNELS[0], 2, 2])
    (warning,) = faults(small_store)
    assert warning.harmless
    assert "shows 2 rows of 12 to plain zarr" in warning.problem


def test_a_compaction_with_other_markers(small_store: Path) -> None:
    """Readers trust it for every marker in it, so one that disagrees hides what the marker says."""
    edit_json(small_store / "markers" / marker_name("a.tar", 0), device="another device")
    assert [fault.problem for fault in faults(small_store)] == [
        "differs from what compact/00000000.json holds"
    ]


def test_a_compaction_with_other_records(small_store: Path) -> None:
    """The index that readers see is the compaction's, not the attempts' own."""
    kept = {file: file.read_bytes() for file in (small_store / "compact").glob("*")}
    edit_table(small_store, "index", set_cell("caption", 0, "another caption"))
    for file, data in kept.items():
        file.write_bytes(data)
    assert "its records of round 0 differ from those that the marker commits" in {
        fault.problem for fault in faults(small_store)
    }


def test_several_rounds_of_a_shard(tmp_path: Path) -> None:
    """A continuation and a retry commit markers of their own; the newest outcome of each sample counts."""
    url, made_of = str(tmp_path / "store"), manifest()
    make_store(url, made_of)
    first = Assignment(shard())
    draft = Draft(url, made_of, first)
    draft.write(["a", "b"], {"b": "io-error"})
    draft.commit(complete=False)
    draft = Draft(url, made_of, again(first, 1, start=2, done=2))
    draft.write(["c"])
    draft.commit()
    assert faults(url) == []
    (Path(url) / "markers" / marker_name("a.tar", 0)).unlink()
    assert ["one before it is gone" in fault.problem for fault in faults(url)] == [True]
