"""What is known before work starts: shapes, rows, blocks, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline import embedded, plan
from pipeline.plan import block_rows, make_plan
from schemas.receipts import ArrayLayout
from tests.engines import make_spec
from tests.tars import make_tar, png

EMBEDDED = Path(embedded.BACKBONE)


@given(
    row_bytes=st.lists(st.integers(1, 10**6), min_size=1, max_size=4),
    shard_rows=st.integers(1, 10**5),
    block_bytes=st.integers(1, 10**9),
)
def test_block_rows(row_bytes: list[int], shard_rows: int, block_bytes: int) -> None:
    arrays = [ArrayLayout(group="a", tap="b", shape=[size], dtype="float16") for size in row_bytes]
    total = 2 * sum(row_bytes)
    per_block, per_extent = block_rows(arrays, shard_rows, block_bytes)
    assert 1 <= per_block <= shard_rows
    assert per_block * total <= max(block_bytes, total), "a block exceeds its budget"
    assert per_extent >= shard_rows, "a typical shard needs two claims"
    assert per_extent % per_block == 0, "an extent ends within a block"
    blocks = per_extent // per_block
    assert blocks == math.ceil(shard_rows / max(1, block_bytes // total)), (
        "more blocks than the budget asks for"
    )
    assert per_extent - shard_rows < blocks, "a block more could have been saved"


def shards(folder: Path, samples: list[int]) -> dict[str, Any]:
    """Input of shards with so many samples."""
    for place, count in enumerate(samples):
        make_tar(folder / f"{place:03d}.tar", [(f"{one:04d}.png", png(8, 8, one)) for one in range(count)])
    return {"shards": f"{folder}/*.tar", "caption_field": None}


def test_rows_of_few_shards_are_exact(tmp_path: Path) -> None:
    made = make_plan(make_spec(input=shards(tmp_path, [3, 1, 5])))
    assert (made.rows, made.rows_exact) == (9, True)
    assert [shard.id for shard in made.shards] == ["000.tar", "001.tar", "002.tar"]
    assert made.manifest.timesteps == {"plain": 51}
    assert made.row_bytes == sum(2 * math.prod(array.shape) for array in made.manifest.arrays)


def test_rows_of_many_shards_are_estimated_by_size(tmp_path: Path) -> None:
    made = make_plan(make_spec(input=shards(tmp_path, [20] * 12)))
    assert not made.rows_exact and 220 < made.rows < 260


def test_counting_stops_at_a_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight shards of a GB each were read over the network before anything started, even for a finished job."""
    monkeypatch.setattr(plan, "_COUNTED_BYTES", 1)
    made = make_plan(make_spec(input=shards(tmp_path, [4, 4, 4])))
    assert not made.rows_exact and made.rows == 12


def test_one_small_shard_does_not_set_the_size_of_blocks(tmp_path: Path) -> None:
    """The first shard did: when it held one sample, all others got a claim and an object a row and array."""
    made = make_plan(make_spec(input=shards(tmp_path, [1, 30, 4])))
    assert made.manifest.rows_per_extent >= 30 and made.manifest.rows_per_block > 1


def test_a_broken_shard_is_no_reason_not_to_plan(tmp_path: Path) -> None:
    given = shards(tmp_path, [3])
    (tmp_path / "001.tar").write_bytes(b"no tar" * 1000)
    assert make_plan(make_spec(input=given)).rows == 4


def test_nothing_is_written_and_nothing_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        torch.nn.Conv2d,
        "forward",
        lambda self, x: (
            self._conv_forward(x, self.weight, self.bias) if x.is_meta else pytest.fail("computed")
        ),
    )
    make_plan(make_spec(store=f"{tmp_path}/store"))
    assert list(tmp_path.iterdir()) == []
