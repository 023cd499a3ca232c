"""The simulation of many shards at a tiny size, and the table of costs that the documentation shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.benchmarks import costs, scale
from pipeline import FeatureStore
from pipeline.plan import block_rows
from schemas.receipts import ArrayLayout
from schemas.spec import Output

DOCUMENT = Path(__file__).parents[2] / "infra" / "SCALE.md"
PRICES = costs.Prices(passes=10, gpu_usd=2, shard_rows=1000, compressed=0.5, month_usd=20, puts_usd=5)


@pytest.mark.ray
def test_every_step_of_the_simulation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps themselves assert that all shards were committed, and are found again."""
    monkeypatch.setattr(scale, "_LINKS", 2)
    pattern = scale.make_shards(tmp_path / "shards", 5, 8)
    assert len({path.stat().st_ino for path in (tmp_path / "shards").iterdir()}) == 3
    spec = scale.make_spec(pattern, str(tmp_path / "store"))
    figures = [
        step(spec) for step in (scale.commit, scale.resume, scale.look, scale.open_rows, scale.open_index)
    ]
    assert all(value >= 0 for found in figures for value in found.values())
    store = FeatureStore(spec.store)
    assert len(store.index) == 40 and len(store.ledger.shards) == 5 and store.ledger.fresh == []


def test_a_line_of_the_table() -> None:
    """By hand: 10^8 images of one map of 2.6 MB, half of it left, 102 rows a block, so ten blocks and five objects."""
    line = next(
        line for line in costs.rows(PRICES) if line[:2] == ["10^8", "one map [1280, 32, 32], 1 group"]
    )
    assert line[2:] == ["2,778", "43.4 h", "5,556", "131", "2,622", "1.5", "7.5"]


@pytest.mark.parametrize("kept", costs.KEPT, ids=lambda kept: kept.what)
def test_blocks_are_counted_as_a_job_makes_them(kept: costs.Stored) -> None:
    arrays = [
        ArrayLayout(group=f"{group}", tap=f"{place}", shape=list(shape), dtype="float16")
        for group in range(kept.groups)
        for place, shape in enumerate(kept.shapes)
    ]
    if not arrays:
        assert kept.blocks(1000) == 0
        return
    assert Output().block_bytes == costs.BLOCK_BYTES
    per_block, per_extent = block_rows(arrays, 1000, costs.BLOCK_BYTES)
    assert kept.blocks(1000) == per_extent // per_block * len(arrays)


def test_the_documentation_shows_what_the_script_prints() -> None:
    defaults = costs.Prices(
        passes=10, gpu_usd=1.2, shard_rows=1000, compressed=0.92, month_usd=23.0, puts_usd=5.0
    )
    assert costs.table(defaults) in DOCUMENT.read_text()
