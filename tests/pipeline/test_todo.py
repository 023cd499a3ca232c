"""What is left to do, for every state that a shard can be in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import ledger, storage, todo
from pipeline.batches import Assignment
from pipeline.index import read_index
from pipeline.shards import BadShard
from schemas.receipts import Marker
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
    index = read_index(url, manifest(), committed)
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
    assert todo.failed([shard()], committed, read_index(url, manifest(), committed)) == []


def test_a_changed_shard_is_named(url: str) -> None:
    store_shard(url, manifest(), Assignment(shard()), ["a"])
    committed = ledger.read_ledger(url)
    todo.check_unchanged([shard(), shard("new.tar")], committed)
    for other in (replace(shard(), size=7), replace(shard(), version="v2")):
        with pytest.raises(
            todo.ChangedShard, match=r"a\.tar: 1000 bytes, version v1 when stored; now \d+, v\d"
        ):
            todo.check_unchanged([other], committed)


def retried(url: str, positions: Iterable[int]) -> Marker:
    """Another driver's retry of some samples, committed as round 1."""
    draft = Draft(url, manifest(), again(Assignment(shard()), 1, start=None, only=frozenset(positions)))
    draft.write([f"k{position}" for position in positions])
    for record, position in zip(draft.assembler.records, positions, strict=True):
        record.position = position
    return draft.commit().marker


@pytest.mark.parametrize(
    ("done", "wanted", "start", "left"),
    [
        ([1, 3], {1, 3}, None, None),
        ([1], {1, 3}, None, (frozenset({3}), None)),
        ([1, 3], {1}, None, None),
        ([1], {1}, 5, (frozenset(), 5)),
        ([1, 5], {1, 3}, 5, (frozenset({3}), None)),
    ],
)
def test_what_another_retry_leaves(
    url: str,
    done: list[int],
    wanted: set[int],
    start: int | None,
    left: tuple[frozenset[int], int | None] | None,
) -> None:
    """Samples that it did are not done again: their rows would move under the eyes of readers."""
    winner = retried(url, done)
    mine = Assignment(shard(), round=1, start=start, only=frozenset(wanted), done=5)
    found = todo.left_by(*storage.open_fs(url), winner, mine)
    expected = None if left is None else replace(mine, round=2, only=left[0], start=left[1])
    assert found == expected


def test_a_retry_that_was_set_aside_is_decided(url: str) -> None:
    """No other driver must try it three times more."""
    mine = Assignment(shard(), round=1, start=4, only=frozenset({1, 3}), done=4)
    winner = Draft(url, manifest(), mine).commit(bad=BadShard("worker-died", "why")).marker
    assert todo.left_by(*storage.open_fs(url), winner, mine) is None


def test_what_another_whole_or_cut_attempt_leaves(url: str) -> None:
    fs, root = storage.open_fs(url)
    cut = Draft(url, manifest(), Assignment(shard()))
    cut.write(["a", "b"])
    marker = cut.commit(complete=False).marker
    assert todo.left_by(fs, root, marker, Assignment(shard())) == Assignment(
        shard(), round=1, start=2, done=2
    )
    assert todo.left_by(fs, root, marker, Assignment(shard(), stop=2)) is None
    whole = store_shard(url, manifest(), Assignment(shard("b.tar")), ["a"]).marker
    assert todo.left_by(fs, root, whole, Assignment(shard("b.tar"))) is None
