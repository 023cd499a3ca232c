"""Who is done next, who is to blame, and when to give up."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.batches import Assignment
from pipeline.schedule import MAX_FAILURES, JobFailed, Schedule
from tests.attempts import shard


def schedule(count: int) -> Schedule[Assignment]:
    return Schedule([Assignment(shard(f"{number}.tar")) for number in range(count)])


def take(one: Schedule[Assignment], *, idle: bool = True) -> Assignment:
    assignment = one.next(idle=idle)
    assert assignment is not None
    return assignment


def test_in_order_and_to_the_end() -> None:
    one = schedule(3)
    names = []
    while (assignment := one.next(idle=True)) is not None:
        names.append(assignment.shard.id)
        one.succeeded(assignment)
    assert names == ["0.tar", "1.tar", "2.tar"]
    assert one.finished and one.done == 3 and one.remaining == 0


def test_suspects_go_to_idle_workers_only() -> None:
    """Two shards were on a worker that died; until each has been alone, neither is done beside another."""
    one = schedule(3)
    first, second = take(one), take(one)
    for assignment in (first, second):
        assert not one.failed(assignment, "died", suspect=True)
    assert one.next(idle=False) is not None, "the shard that is no suspect"
    assert one.next(idle=False) is None
    alone = take(one)
    assert one.is_suspect(alone)
    one.succeeded(alone)
    assert not one.is_suspect(alone)


def test_set_aside_after_three_failures_and_the_job_goes_on() -> None:
    one = schedule(2)
    good = one.next(idle=True)
    assert good is not None
    one.succeeded(good)
    verdicts = [one.failed(take(one), "died", suspect=True) for _ in range(MAX_FAILURES)]
    assert verdicts == [False, False, True]
    assert one.set_aside == ["1.tar"] and one.finished


def test_a_lost_node_blames_nobody() -> None:
    one = schedule(1)
    for _ in range(10 * MAX_FAILURES):
        one.interrupted(take(one))
    assert not one.set_aside and not one.finished


def test_nothing_but_failures_fails_the_job() -> None:
    """A wrong credential or a full disk must not set ten thousand shards aside."""
    one = schedule(50)
    with pytest.raises(
        JobFailed, match=r"the first 3 shards failed 3 times each.*last, 2\.tar: bucket is gone"
    ):
        while True:
            one.failed(take(one), "bucket is gone", suspect=False)


@given(st.lists(st.sampled_from(["done", "failed", "died", "lost"]), max_size=200), st.integers(1, 8))
def test_every_shard_ends_once(events: list[str], count: int) -> None:
    """Whatever happens in whatever order, no assignment is lost and none is done twice."""
    one = schedule(count)
    ended: list[str] = []
    try:
        for event in events:
            assignment = one.next(idle=True)
            if assignment is None:
                break
            if event == "done":
                one.succeeded(assignment)
                ended.append(assignment.shard.id)
            elif event == "lost":
                one.interrupted(assignment)
            elif one.failed(assignment, "why", suspect=event == "died"):
                ended.append(assignment.shard.id)
    except JobFailed:
        return
    assert len(ended) == len(set(ended)) == count - one.remaining
