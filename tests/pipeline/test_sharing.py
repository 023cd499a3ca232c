"""What several drivers do of one job, and what becomes of the shards of those that die."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest

from pipeline import FeatureStore, sharing, todo
from pipeline import job as jobs
from pipeline.batches import Assignment
from pipeline.job import Job
from pipeline.lease_board import Board
from pipeline.leases import Driver, Held
from pipeline.sharing import ExclusiveSchedule, SharedSchedule, make_schedule
from pipeline.verify import Verifier
from pipeline.worker import Task
from schemas.lease import Mode
from tests.attempts import Draft, make_store, manifest, shard, store_shard
from tests.faults.harness import spec_of
from tests.pipeline.test_leases import driver

KEYS = ["a", "b", "c", "d"]
SHARDS = 12


@pytest.fixture(autouse=True)
def look_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharing, "_LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(sharing, "_LOOK_SHARE", 1e9)


@pytest.fixture
def url(tmp_path: Path) -> str:
    make_store(str(tmp_path / "store"), manifest())
    return str(tmp_path / "store")


def enter(url: str, name: str, shards: int = SHARDS) -> tuple[Driver, Job]:
    """A driver that shares the job, with all shards before it."""
    one = driver(url, name, "shared", ttl_s=60.0)
    one.enter()
    assignments = [Assignment(shard(f"{number}.tar")) for number in range(shards)]
    return one, Job(spec_of(url, "unused"), manifest(), assignments, one)


def commit(url: str, job: Job, task: Task) -> bool:
    """Do a task; whether it was not in vain."""
    draft = Draft(url, manifest(), task.assignment, hint=task.hint)
    draft.write(KEYS)
    outcome = draft.commit()
    job.succeeded(task, outcome)
    return outcome.committed


def test_two_drivers_split_the_shards(url: str) -> None:
    """Each in an order of its own: together they do all of them, none twice, and both know when it is over."""
    (_, one), (_, two) = enter(url, "1"), enter(url, "2")
    done: Counter[str] = Counter()
    orders: list[list[str]] = [[], []]
    while not (one.finished and two.finished):
        for job, order in zip((one, two), orders, strict=True):
            if task := job.next_task(idle=True):
                assert commit(url, job, task)
                done[task.assignment.shard.id] += 1
                order.append(task.assignment.shard.id)
    assert done == {f"{number}.tar": 1 for number in range(SHARDS)}
    assert all(order != sorted(order, key=lambda name: int(name[:-4])) for order in orders)
    assert one.schedule.done + one.schedule.by_others == two.schedule.done + two.schedule.by_others == SHARDS
    assert list(Verifier(url, fast=False).faults()) == []
    extents = sorted(int(path.stem) for path in (Path(url) / "claims").iterdir())
    assert len(extents) == SHARDS and extents[-1] >= SHARDS, (
        "the second one began behind the first one's rows"
    )


def test_shards_of_a_dead_driver_come_back(url: str) -> None:
    """What it had in hand is waited for while it lives, and done by others once it does not."""
    (dying, one), (living, two) = enter(url, "1", 3), enter(url, "2", 3)
    held = one.next_task(idle=True)
    assert held is not None
    while task := two.next_task(idle=True):
        commit(url, two, task)
    assert two.schedule.remaining == 1 and not two.finished
    dying.end()
    living.beat()
    task = two.next_task(idle=True)
    assert task is not None and task.assignment == held.assignment
    assert commit(url, two, task) and two.finished
    assert not commit(url, one, held), "the dead one was alive after all, and comes too late"
    assert list(Verifier(url, fast=False).faults()) == []


def test_what_was_committed_before_its_lease_became_free_is_not_done_again(url: str) -> None:
    """A driver that comes and goes while another one is busy leaves leases that anyone may take."""
    (_, slow) = enter(url, "1", 2)
    passing, one = enter(url, "2", 2)
    while task := one.next_task(idle=True):
        commit(url, one, task)
    passing.end()
    assert slow.next_task(idle=True) is None
    assert slow.finished and slow.schedule.by_others == 2


def test_a_retry_of_other_samples_leaves_ours(url: str) -> None:
    """Two drivers share a retry for different reasons: the second one's samples must not be dropped without a word."""
    store_shard(url, manifest(), Assignment(shard()), KEYS, {"b": "io-error", "c": "worker-died"})
    drivers = [driver(url, name, "shared", ttl_s=60.0) for name in ("1", "2")]
    jobs_ = []
    for one, position in zip(drivers, (1, 2), strict=True):
        one.enter()
        retry = Assignment(shard(), round=1, start=None, only=frozenset({position}), done=4)
        jobs_.append(Job(spec_of(url, "unused"), manifest(), [retry], one))
    first, second = jobs_
    task = first.next_task(idle=True)
    assert task is not None and second.next_task(idle=True) is None
    retry_of(url, first, task)
    drivers[0].end()
    drivers[1].beat()
    task = second.next_task(idle=True)
    assert task is not None
    assert task.assignment == Assignment(shard(), round=2, start=None, only=frozenset({2}), done=4)
    retry_of(url, second, task)
    assert second.finished and len(FeatureStore(url).rows()) == 4
    assert list(Verifier(url, fast=False).faults()) == []


def test_a_request_that_fails_while_it_looks(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What other drivers hold must not be forgotten: the job would end without it."""
    names = [f"{number}.tar" for number in range(3)]
    for name in names:
        store_shard(url, manifest(), Assignment(shard(name)), KEYS, {"b": "io-error"})
    retries = [Assignment(shard(name), round=1, start=None, only=frozenset({1}), done=4) for name in names]
    one, two = driver(url, "1", "shared", ttl_s=60.0), driver(url, "2", "shared", ttl_s=60.0)
    one.enter()
    two.enter()
    first, second = (Job(spec_of(url, "unused"), manifest(), retries, each) for each in (one, two))
    tasks = [first.next_task(idle=True) for _ in names]
    assert second.next_task(idle=True) is None and second.schedule.remaining == 3
    assert tasks[0] is not None
    retry_of(url, first, tasks[0])
    with monkeypatch.context() as patch:
        patch.setattr(todo, "left_by", refuse)
        assert second.next_task(idle=True) is None
    assert second.schedule.remaining == 3 and not second.finished
    assert second.next_task(idle=True) is None and second.schedule.remaining == 2


def retry_of(url: str, job: Job, task: Task) -> None:
    """Do the one sample that a task is about."""
    (position,) = task.assignment.only
    draft = Draft(url, manifest(), task.assignment, hint=task.hint)
    draft.write([KEYS[position]])
    draft.assembler.records[0].position = position
    job.succeeded(task, draft.commit())


@pytest.mark.parametrize("mode", ["exclusive", "shared"])
def test_a_store_that_does_not_answer_the_driver(
    url: str, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is handed out or lost, and the job goes on when it answers again; but it does not wait for good."""
    one = driver(url, "1", mode, ttl_s=0.2)
    one.enter()
    job = Job(spec_of(url, "unused"), manifest(), [Assignment(shard())], one)
    time.sleep(0.25)
    with monkeypatch.context() as patch:
        patch.setattr(Board, "renew", refuse)
        assert job.next_task(idle=True) is job.next_task(idle=True) is None
        assert job.schedule.remaining == 1 and not job.finished
        patch.setattr(jobs, "_PATIENCE_S", 0.0)
        with pytest.raises(OSError, match="SlowDown"):
            job.next_task(idle=True)
    task = job.next_task(idle=True)
    assert task is not None and commit(url, job, task) and job.finished


def refuse(*_: object) -> None:
    raise OSError("SlowDown")


def test_a_request_for_a_lease_that_fails(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shard stays where it was."""
    _, job = enter(url, "1", 1)
    with monkeypatch.context() as patch:
        patch.setattr(Board, "create", refuse)
        assert job.next_task(idle=True) is None and job.schedule.remaining == 1
    assert job.next_task(idle=True) is not None


def test_what_failed_is_left_to_who_took_the_job_over(url: str) -> None:
    """The new owner may be at it, and would find it set aside."""
    slept = driver(url, "slept", ttl_s=0.2)
    slept.enter()
    job = Job(
        spec_of(url, "unused"), manifest(), [Assignment(shard("0.tar")), Assignment(shard("1.tar"))], slept
    )
    for _ in range(3):
        bad = job.next_task(idle=True)
        assert bad is not None
        job.failed(bad, "io-error", "reset", suspect=False)
        slept.beat()
        if job.schedule.set_aside:
            break
        job.schedule._pending.rotate(1)  # the same shard again
    time.sleep(0.25)
    driver(url, "other").enter()
    assert job.next_task(idle=True) is None and job.taken_over
    assert job.finish().markers == []


def test_a_shard_that_fails_is_its_drivers_until_it_is_set_aside(url: str) -> None:
    """Drivers must not try a bad shard three times each, nor wait for each other for ever where all shards are bad."""
    (_, one), (_, two) = enter(url, "1", 2), enter(url, "2", 2)
    for _ in range(3):
        for job in (one, two):
            task = job.next_task(idle=True)
            assert task is not None
            job.failed(task, "io-error", "reset", suspect=False)
    assert one.next_task(idle=True) is two.next_task(idle=True) is None
    assert one.next_task(idle=True) is two.next_task(idle=True) is None
    assert one.finished and two.finished and one.counts == two.counts == {"io-error": 1}


def test_a_job_that_was_taken_over_hands_out_nothing_more(url: str) -> None:
    """An exclusive driver that slept: what it has in hand it may finish, which harms nobody."""
    slept = driver(url, "slept", ttl_s=0.2)
    slept.enter()
    assignments = [Assignment(shard(f"{number}.tar")) for number in range(2)]
    job = Job(spec_of(url, "unused"), manifest(), assignments, slept)
    task = job.next_task(idle=True)
    assert task is not None and not job.taken_over
    other = driver(url, "other")
    other.enter()
    assert job.next_task(idle=True) is None
    assert isinstance(job.taken_over, Held) and job.finished and job.schedule.remaining == 2
    assert commit(url, job, task)


def test_the_schedule_of_each_mode(url: str) -> None:
    kinds = [type(make_schedule(url, [], driver(url, "a", mode))) for mode in ("exclusive", "shared")]
    assert kinds == [ExclusiveSchedule, SharedSchedule]
