"""Batches to blocks: every record has one row, in order, in the right block, with its own features or NaN."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.batches import Record
from pipeline.blocks import Block, BlockAssembler
from pipeline.features import Features
from schemas.receipts import ArrayLayout

BATCH = 4
LAYOUTS = [
    ArrayLayout(group="plain", tap="x", shape=[2, 3, 3], dtype="float16"),
    ArrayLayout(group="plain", tap="y", shape=[1, 1, 2], dtype="float32"),
    ArrayLayout(group="caption", tap="x", shape=[2, 3, 3], dtype="float16"),
]
TAPS = [(layout.group, layout.tap) for layout in LAYOUTS]
VECTORS = {(layout.group, layout.tap): layout.shape[0] for layout in LAYOUTS}

GOOD, NO_CAPTION, BAD, ABSENT = "good", "no-caption", "bad", "absent"
kinds = st.sampled_from([GOOD, GOOD, NO_CAPTION, BAD, ABSENT])


def feed(assembler: BlockAssembler, samples: list[str]) -> list[Block]:
    """Give an assembler samples of these kinds; the features of the one at position p are all p + 1."""
    blocks: list[Block] = []
    for start in range(0, len(samples), BATCH):
        records: list[Record | None] = [None] * BATCH
        values = np.zeros(BATCH)
        reasons: dict[str, list[str | None]] = {"plain": [None] * BATCH, "caption": [None] * BATCH}
        for slot, kind in enumerate(samples[start : start + BATCH]):
            values[slot] = start + slot + 1
            if kind != ABSENT:
                records[slot] = Record(
                    start + slot, f"key {start + slot}", "no-image" if kind == BAD else None
                )
            if kind == NO_CAPTION:
                reasons["caption"][slot] = "no-caption"
        features = Features(
            {
                (one.group, one.tap): np.broadcast_to(
                    values[:, None, None, None], (BATCH, *one.shape)
                ).astype(one.dtype)
                for one in LAYOUTS
            },
            {
                tap: np.broadcast_to(values[:, None], (BATCH, size)).astype("f4")
                for tap, size in VECTORS.items()
            },
            reasons,
        )
        good = any(record is not None and record.reason is None for record in records)
        blocks += assembler.add(records, features if good else None)
    return blocks + list(assembler.flush())


@given(st.lists(kinds, max_size=25), st.integers(1, 11), st.booleans())
def test_every_sample_once_in_order_in_the_right_block(samples: list[str], rows: int, pooled: bool) -> None:
    assembler = BlockAssembler(LAYOUTS, rows, pooled=pooled)
    blocks = feed(assembler, samples)
    present = [(position, kind) for position, kind in enumerate(samples) if kind != ABSENT]
    assert [record.position for record in assembler.records] == [position for position, _ in present]
    assert [record.row for record in assembler.records] == list(range(len(present)))
    assert [block.number for block in blocks] == list(range(-(-len(present) // rows)))
    for layout in LAYOUTS:
        tap = (layout.group, layout.tap)
        for block in blocks:
            assert (
                block.arrays[tap].shape == (rows, *layout.shape) and block.arrays[tap].dtype == layout.dtype
            )
        stored = [row for block in blocks for row in block.arrays[tap]]
        for row, values in enumerate(stored):
            position, kind = present[row] if row < len(present) else (0, ABSENT)
            failed = kind in (BAD, ABSENT) or (kind == NO_CAPTION and layout.group == "caption")
            assert np.isnan(values).all() if failed else (values == position + 1).all()


@given(st.lists(kinds, max_size=25))
def test_pooled_vectors_stay_with_their_rows(samples: list[str]) -> None:
    """Also where the first or the last batches are all bad, which give no features."""
    assembler = BlockAssembler([], 5, pooled=True)
    assert feed(assembler, samples) == []
    present = [(position, kind) for position, kind in enumerate(samples) if kind != ABSENT]
    rows = [100 + 2 * place for place in range(len(present))]
    table = assembler.pooled_table(VECTORS, rows, "a.tar")
    assert table is not None and table["row"].to_pylist() == rows
    assert table["shard"].to_pylist() == ["a.tar"] * len(rows)
    assert table["key"].to_pylist() == [f"key {position}" for position, _ in present]
    for (group, tap), channels in VECTORS.items():
        for (position, kind), vector in zip(present, table[f"{group}/{tap}"].to_pylist(), strict=True):
            if kind == BAD or (kind == NO_CAPTION and group == "caption"):
                assert vector is None
            else:
                assert np.frombuffer(vector, "<f4").tolist() == [position + 1] * channels


def test_bad_batches_first_and_last() -> None:
    assembler = BlockAssembler(LAYOUTS, 8, pooled=True)
    blocks = feed(assembler, [BAD] * 4 + [GOOD] * 4 + [BAD] * 4)
    table = assembler.pooled_table(VECTORS, list(range(12)), "a.tar")
    assert table is not None
    assert [vector is None for vector in table["plain/x"].to_pylist()] == [True] * 4 + [False] * 4 + [
        True
    ] * 4
    empty = [np.isnan(row).all() for block in blocks for row in block.arrays[TAPS[0]]]
    assert empty == [True] * 4 + [False] * 4 + [True] * 8


def test_groups_that_failed_are_recorded() -> None:
    assembler = BlockAssembler(LAYOUTS, 4, pooled=False)
    feed(assembler, [GOOD, NO_CAPTION, BAD])
    assert [record.groups for record in assembler.records] == [
        {"plain": None, "caption": None},
        {"plain": None, "caption": "no-caption"},
        {},
    ]
    assert [record.status for record in assembler.records] == ["ok", "partial", "failed"]
    assert assembler.pooled_table(VECTORS, [0, 1, 2], "a.tar") is None


def test_scores_are_of_groups_that_did_not_fail() -> None:
    assembler = BlockAssembler([], 4, pooled=False)
    records: list[Record | None] = [Record(slot, f"key {slot}") for slot in range(3)]
    records[2] = Record(2, "key 2", "no-image")
    reasons: dict[str, list[str | None]] = {"plain": [None] * 3, "caption": [None, "no-caption", None]}
    scores = {"plain": np.array([0.1, 0.2, 0.3], "f4"), "caption": np.array([0.4, 0.5, 0.6], "f4")}
    assert not list(assembler.add(records, Features({}, {}, reasons, scores)))
    found = [{group: np.float32(value) for group, value in one.scores.items()} for one in assembler.records]
    assert found == [{"plain": np.float32(0.1), "caption": np.float32(0.4)}, {"plain": np.float32(0.2)}, {}]


def test_a_block_keeps_nothing_of_the_one_before() -> None:
    """Blocks are uploaded while the next is filled, so they must not share memory."""
    first, second = feed(BlockAssembler(LAYOUTS, 4, pooled=False), [GOOD] * 4 + [BAD, GOOD])
    assert not np.shares_memory(first.arrays[TAPS[0]], second.arrays[TAPS[0]])
    assert np.isnan(second.arrays[TAPS[0]][[0, 2, 3]]).all()


def test_nothing_at_all() -> None:
    assembler = BlockAssembler(LAYOUTS, 4, pooled=True)
    assert feed(assembler, []) == []
    table = assembler.pooled_table(VECTORS, [], "a.tar")
    assert table is not None and table.num_rows == 0
