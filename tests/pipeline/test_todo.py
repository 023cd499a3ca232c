"""What is left to do, for every state that a shard can be in."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import ledger, todo
from pipeline.batches import Assignment
from pipeline.shards import BadShard
from tests.attempts import Draft, again, make_store, manifest, shard, store_shard


@pytest.fixture
def url(tmp_path: Path) -> str:
    make_store(str(tmp_path), manifest())
    return str(tmp_path)


def test_new_cut_and_finished_shards(url: str) -> None:
    shards = [shard(name) for name in ("cut.tar", "done.tar", "new.tar")]
    cut = Draft(url, manifest(), Assignment(shards[0]))
    cut.write(["a", "b"])
    cut.commit(complete=False)
    store_shard(url, manifest(), Assignment(shards[1]), ["a"])
    assert todo.unfinished(shards, ledger.read_ledger(url)) == [
        Assignment(shards[0], round=1, start=2, done=2),
        Assignment(shards[2]),
    ]


def test_failures_that_can_pass_are_retried_and_no_others(url: str) -> None:
    shards = [shard(name) for name in ("aside.tar", "good.tar", "mixed.tar", "new.tar")]
    Draft(url, manifest(), Assignment(shards[0])).commit(bad=BadShard("worker-died", "why"))
    store_shard(url, manifest(), Assignment(shards[1]), ["a"])
    store_shard(url, manifest(), Assignment(shards[2]), ["a", "b", "c"], {"a": "no-image", "c": "io-error"})
    committed = ledger.read_ledger(url)
    index = ledger.read_index(url, manifest(), committed)
    assert todo.failed(shards, committed, index) == [
        Assignment(shards[0], round=1, start=0),
        Assignment(shards[2], round=1, start=None, only=frozenset({2}), done=3),
    ]
    assert todo.failed(shards, committed, index, ["no-image"]) == [
        Assignment(shards[2], round=1, start=None, only=frozenset({0}), done=3)
    ]


def test_a_retry_that_succeeded_is_not_retried(url: str) -> None:
    assignment = Assignment(shard())
    store_shard(url, manifest(), assignment, ["a"], {"a": "io-error"})
    store_shard(url, manifest(), again(assignment, 1), ["a"])
    committed = ledger.read_ledger(url)
    assert todo.failed([shard()], committed, ledger.read_index(url, manifest(), committed)) == []


def test_a_changed_shard_is_named(url: str) -> None:
    store_shard(url, manifest(), Assignment(shard()), ["a"])
    committed = ledger.read_ledger(url)
    todo.check_unchanged([shard(), shard("new.tar")], committed)
    for other in (replace(shard(), size=7), replace(shard(), version="v2")):
        with pytest.raises(
            todo.ChangedShard, match=r"a\.tar: 1000 bytes, version v1 when stored; now \d+, v\d"
        ):
            todo.check_unchanged([other], committed)
