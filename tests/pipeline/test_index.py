"""The index: which records are the newest, and that few columns say what all of them say."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import ledger
from pipeline.batches import Assignment
from pipeline.index import Where, newest, read_index
from pipeline.shards import BadShard
from schemas.layout import index_schema
from tests.attempts import Draft, again, make_store, manifest, shard, store_shard

KEYS = ["k0", "k1", "k2"]


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A store of three shards, one compacted; one was done in two rounds, one could not be read to its end."""
    place = str(tmp_path / "store")
    make_store(place, manifest())
    twice = Assignment(shard("b.tar"))
    store_shard(place, manifest(), twice, KEYS, {"k1": "io-error"})
    store_shard(place, manifest(), Assignment(shard("c.tar")), KEYS, {"k0": "no-image"})
    ledger.compact(place, ledger.read_ledger(place).fresh)
    retry = Draft(place, manifest(), again(twice, 1, start=None, only=frozenset({1})))
    retry.write(["k1"])
    retry.assembler.records[0].position = 1
    retry.commit()
    cut = Draft(place, manifest(), Assignment(shard("a.tar")))
    cut.write(KEYS[:2])
    cut.commit(bad=BadShard("truncated-tar", "cut"))
    return place


def test_all_columns_of_all_records(url: str) -> None:
    index = read_index(url, manifest(), ledger.read_ledger(url))
    assert index.schema == index_schema(manifest().groups)
    found = index.select(["shard", "position", "key", "round", "reason"]).to_pylist()
    assert [tuple(line.values()) for line in found] == [
        ("a.tar", 0, "k0", 0, None),
        ("a.tar", 1, "k1", 0, None),
        ("a.tar", 2, None, 0, "truncated-tar"),
        ("b.tar", 0, "k0", 0, None),
        ("b.tar", 1, "k1", 1, None),
        ("b.tar", 2, "k2", 0, None),
        ("c.tar", 0, "k0", 0, "no-image"),
        ("c.tar", 1, "k1", 0, None),
        ("c.tar", 2, "k2", 0, None),
    ]


WHERE = {
    "all": None,
    "bad": Where(["reason"], pc.field("reason").is_valid()),
    "rows": Where(
        ["row", "groups"], pc.field("row").is_valid() & (pc.field("groups", "fine", "status") == "ok")
    ),
}


@pytest.mark.parametrize("where", WHERE.values(), ids=WHERE)
@pytest.mark.parametrize("columns", [["row"], ["key", "shard"], ["round", "position"], ["groups"], []])
def test_some_columns_of_some_records(url: str, columns: list[str], where: Where | None) -> None:
    """The same as to read everything and to choose then: a sample's older outcomes must not come back."""
    committed = ledger.read_ledger(url)
    every = read_index(url, manifest(), committed)
    expected = (every if where is None else every.filter(where.condition)).select(columns)
    found = read_index(url, manifest(), committed, columns, where)
    assert found.schema == expected.schema and found.to_pylist() == expected.to_pylist()
    assert found.num_rows == expected.num_rows


def test_of_an_empty_store(tmp_path: Path) -> None:
    place = str(tmp_path / "store")
    make_store(place, manifest())
    committed = ledger.read_ledger(place)
    assert read_index(place, manifest(), committed).schema == index_schema(manifest().groups)
    assert read_index(place, manifest(), committed, ["row"]).schema.names == ["row"]


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 4), st.integers(0, 5), st.booleans()),
        max_size=40,
        unique=True,
    )
)
def test_newest_against_a_dictionary(found: list[tuple[int, int, int, bool]]) -> None:
    """The vectorised choice equals the obvious loop, in any order of records."""
    records = {(shard, position, round_): null for shard, position, round_, null in found}
    table = pa.table(
        {
            "shard": pa.array([f"{key[0]}" for key in records], pa.string()),
            "position": pa.array([key[1] for key in records], pa.int64()),
            "round": pa.array([key[2] for key in records], pa.int32()),
            "key": pa.array([None if null else "k" for null in records.values()], pa.string()),
        }
    )
    expected: dict[tuple[str, int, bool], int] = {}
    for (shard_, position, round_), null in sorted(records.items()):
        expected[f"{shard_}", position, null] = round_
    last = {f"{shard_}": max(key[2] for key in records if key[0] == shard_) for shard_, _, _ in records}
    expected = {
        where: round_ for where, round_ in expected.items() if not where[2] or round_ == last[where[0]]
    }
    got = {
        (line["shard"], line["position"], line["key"] is None): line["round"]
        for line in newest(table, last).to_pylist()
    }
    assert got == expected
