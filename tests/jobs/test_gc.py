"""What `gatehouse gc` says and does."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from jobs import endings, gc
from pipeline import gc as collect
from pipeline.batches import Assignment
from pipeline.driving import driving
from pipeline.lease_board import Board
from pipeline.store import StoreError
from tests.attempts import Draft, make_store, manifest, shard, store_shard
from tests.pipeline.test_sharing import refuse


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
    assert gc.run(url, dry_run=True, abandoned=False) == endings.DONE
    output = capsys.readouterr().out
    assert "would be freed" in output
    assert "without an outcome: 1, left alone" in output
    assert blocks(url) == 6


@pytest.mark.parametrize(("abandoned", "left"), [(False, 4), (True, 2)])
def test_what_is_freed(url: str, capsys: pytest.CaptureFixture[str], abandoned: bool, left: int) -> None:
    """Numbers printed are those of the objects that are gone."""
    assert gc.run(url, dry_run=False, abandoned=abandoned) == endings.DONE
    output = capsys.readouterr().out
    assert "gc: freed" in output
    assert f"│ blocks │ {6 - left}       │" in output
    assert ("without an outcome" in output) == (not abandoned)
    assert blocks(url) == left


def test_nothing_is_taken_for_abandoned_beside_a_driver(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever gives --abandoned may not know of a job that somebody else has started."""
    with driving(url, "shared", 3.0):
        assert gc.run(url, dry_run=False, abandoned=True) == endings.HELD
        assert "nothing was removed: " in capsys.readouterr().err and blocks(url) == 6
        assert gc.run(url, dry_run=False, abandoned=False) == endings.DONE
    assert gc.run(url, dry_run=False, abandoned=True) == endings.DONE
    assert [path.name for path in Path(url).glob("leases/**/*.json")] == ["job-000000.json"]


def test_who_lost_its_lease_while_it_looked_removes_nothing(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A listing can take longer than a lease lasts, and a job may have begun meanwhile."""
    find = collect.find

    def slow(*arguments: Any, **options: Any) -> collect.Findings:
        found = find(*arguments, **options)
        with monkeypatch.context() as patch:
            patch.setattr(Board, "renew", refuse)
            time.sleep(0.4)
        with driving(url, "exclusive", 60.0):
            return found

    monkeypatch.setattr(gc, "_LEASE_TTL_S", 0.3)
    monkeypatch.setattr(collect, "find", slow)
    assert gc.run(url, dry_run=False, abandoned=True) == endings.HELD
    assert blocks(url) == 6


def test_nothing_is_written_where_no_store_is(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no feature store"):
        gc.run(str(tmp_path), dry_run=False, abandoned=True)
    assert list(tmp_path.iterdir()) == []
