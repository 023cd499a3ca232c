"""What `gatehouse gc` says and does."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs import gc
from pipeline.batches import Assignment
from tests.attempts import Draft, make_store, manifest, shard, store_shard


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A store with a committed shard, an attempt that lost it, and one without an outcome at another."""
    url, made_of = str(tmp_path / "store"), manifest()
    make_store(url, made_of)
    store_shard(url, made_of, Assignment(shard("a.tar")), ["a", "b"])
    for name in ("a.tar", "b.tar"):
        Draft(url, made_of, Assignment(shard(name)), hint=1).write(["a", "b", "c", "d"])
    return url


def blocks(url: str) -> int:
    return len(list(Path(url).glob("features/*/*/c/*/0/0/0")))


def test_dry_run_removes_nothing(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert gc.run(url, dry_run=True, abandoned=False) == gc.DONE
    output = capsys.readouterr().out
    assert "would be freed" in output
    assert "without an outcome: 1, left alone" in output
    assert blocks(url) == 6


@pytest.mark.parametrize(("abandoned", "left"), [(False, 4), (True, 2)])
def test_what_is_freed(url: str, capsys: pytest.CaptureFixture[str], abandoned: bool, left: int) -> None:
    """Numbers printed are those of the objects that are gone."""
    assert gc.run(url, dry_run=False, abandoned=abandoned) == gc.DONE
    output = capsys.readouterr().out
    assert "gc: freed" in output
    assert f"│ blocks │ {6 - left}       │" in output
    assert ("without an outcome" in output) == (not abandoned)
    assert blocks(url) == left
