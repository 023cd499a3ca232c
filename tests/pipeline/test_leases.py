"""Drivers and what they hold: at most one holder, refusals that say who, and those that died."""

from __future__ import annotations

import itertools
import logging
import math
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import storage
from pipeline.driving import driving
from pipeline.lease_board import Board
from pipeline.leases import Driver, Held
from schemas.layout import JOB
from schemas.lease import Heartbeat, Lease, Mode
from tests.conftest import BucketUrl

TTL_S = 2.5
MODES: tuple[Mode, ...] = ("exclusive", "shared")


def about(name: str, mode: Mode = "exclusive", ttl_s: float = TTL_S) -> Heartbeat:
    return Heartbeat(
        driver=name,
        mode=mode,
        host=f"host-{name}",
        pid=7,
        command="extract spec.yaml",
        started="now",
        ttl_s=ttl_s,
    )


def driver(url: str, name: str, mode: Mode = "exclusive", ttl_s: float = TTL_S) -> Driver:
    return Driver(Board(url), about(name, mode, ttl_s))


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "store")
    bucket: BucketUrl = request.getfixturevalue("s3")
    return f"{bucket()}/store"


class World:
    """A store in memory with a clock of whole seconds, and drivers that may stand still around any request."""

    def __init__(self, seed: int, drivers: int, modes: Sequence[Mode]) -> None:
        self.now = 1000.0
        self.times: dict[str, int] = {}
        self.heartbeats: dict[str, Heartbeat] = {}
        self.leases: dict[tuple[str, int], Lease] = {}
        self._names = (str(number) for number in itertools.count())
        self._random, self._modes, self._at_work = random.Random(seed), modes, set[int]()
        self.drivers = [self._new() for _ in range(drivers)]

    def step(self) -> None:
        """Some driver that is in no request does something."""
        free = [place for place in range(len(self.drivers)) if place not in self._at_work]
        if not free:
            return
        place = self._random.choice(free)
        act = self._random.choice(["beat", "beat", "keep_on", "keep_on", "enter", "end"])
        self._at_work.add(place)
        with suppress(Held, storage.StorageError):
            getattr(self.drivers[place], act)()
        self._at_work.remove(place)
        if act == "end":
            self.drivers[place] = self._new()
        self.check()

    def wait(self) -> None:
        """Time goes by, and others may act, while somebody is at any point of a request."""
        self.now += self._random.choice([0.0, 0.1, 0.3] if self._random.random() < 0.85 else [1.1, 2.3, 4.7])
        self.check()
        if self._random.random() < 0.2:
            self.step()

    def check(self) -> None:
        holders = [one.me.driver for one in self.drivers if one.holds(JOB)]
        assert len(holders) <= 1, f"held by {holders} at {self.now}"
        at_work = {
            mode: [one for one in self.drivers if one.at_work and one.me.mode == mode] for mode in MODES
        }
        assert len(at_work["exclusive"]) <= (0 if at_work["shared"] else 1), f"{at_work} at {self.now}"

    def _new(self) -> Driver:
        me = about(next(self._names), self._random.choice(self._modes))
        return Driver(FakeBoard(self), me, lambda: self.now, lambda _: self.wait())


class FakeBoard(Board):
    """Of such a world."""

    url = "memory"

    def __init__(self, world: World) -> None:
        self._world = world

    def renew(self, heartbeat: Heartbeat) -> dict[str, float]:
        world = self._world
        world.wait()
        world.heartbeats[heartbeat.driver] = heartbeat
        world.times[heartbeat.driver] = math.floor(world.now)
        world.wait()
        ages = {name: world.times[heartbeat.driver] - time for name, time in world.times.items()}
        world.wait()
        return {name: float(age) for name, age in ages.items()}

    def heartbeat(self, driver: str) -> Heartbeat | None:
        return self._world.heartbeats.get(driver)

    def remove(self, driver: str) -> None:
        self._world.heartbeats.pop(driver, None)
        self._world.times.pop(driver, None)

    def create(self, lease: Lease) -> Lease:
        self._world.wait()
        there = self._world.leases.setdefault((lease.resource, lease.number), lease)
        self._world.wait()
        return there

    def lease(self, resource: str, number: int) -> Lease | None:
        return self._world.leases.get((resource, number))

    def newest(self, resource: str) -> int:
        self._world.wait()
        return max((number for name, number in self._world.leases if name == resource), default=0)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 3), st.sampled_from([MODES[:1], MODES]))
def test_one_holder_at_most(seed: int, drivers: int, modes: Sequence[Mode]) -> None:
    """And none beside a driver that shares, whoever is paused wherever, however slow requests are, and though the
    store's clock knows whole seconds only."""
    world = World(seed, drivers, modes)
    for _ in range(40):
        world.step()
        world.wait()


def numbers(url: str) -> list[str]:
    """Names of the leases on the job."""
    fs, root = storage.open_fs(url)
    return storage.names(fs, f"{root}/leases")


def test_the_second_is_told_who_is_at_work(url: str) -> None:
    """Once it has seen that the first one is alive; neither leaves anything behind for it."""
    with driving(url, "exclusive", TTL_S) as first:
        second = driver(url, "b")
        with pytest.raises(
            Held,
            match=rf"store .*: another driver is at work there: {first.me.host}, process {os.getpid()} \(.*\),"
            r" exclusive, since .*, last sign of life [01] s ago\. Start again when it has ended; one that was"
            r" killed counts as dead 4 s after",
        ):
            second.enter()
        assert first.holds(JOB) and not second.holds(JOB)
        second.end()
        first.keep_on()
    assert numbers(url) == ["job-000000.json"]


def test_who_ended_holds_nothing(url: str) -> None:
    """The next one need not wait for the time to live."""
    with driving(url, "exclusive", 60.0) as first:
        assert first.holds(JOB)
    with driving(url, "exclusive", 60.0) as second:
        assert second.holds(JOB)
    assert numbers(url) == ["job-000000.json", "job-000001.json"]
    fs, root = storage.open_fs(url)
    assert storage.names(fs, f"{root}/leases/drivers") == []


def test_a_dead_driver_is_taken_over(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """And when it wakes up it finds that it was, even if the other one has ended by then."""
    dead, other = driver(url, "dead", ttl_s=0.2), driver(url, "other")
    dead.enter()
    started = time.monotonic()
    other.enter()
    assert other.holds(JOB) and time.monotonic() - started > 0.2
    assert "what it held is taken over: host-dead, process 7" in caplog.text
    assert not dead.holds(JOB)
    other.end()
    with pytest.raises(
        Held, match=r"no sign of life for more than 0 s, and another one has taken the job over"
    ):
        dead.keep_on()


def test_after_a_silence_that_nobody_noticed(url: str) -> None:
    """An outage of the store longer than the time to live: the job goes on, by a lease of a new number."""
    one = driver(url, "a", ttl_s=0.2)
    one.enter()
    time.sleep(0.25)
    assert not one.holds(JOB)
    one.keep_on()
    assert numbers(url) == ["job-000000.json", "job-000001.json"]


@pytest.mark.parametrize("modes", [("shared", "exclusive"), ("exclusive", "shared")])
def test_modes_refuse_each_other(tmp_path: Path, modes: tuple[Mode, Mode]) -> None:
    url = str(tmp_path)
    with (
        driving(url, modes[0], TTL_S),
        pytest.raises(Held, match=f"process {os.getpid()} .*, {modes[0]}, since"),
    ):
        driver(url, "b", modes[1]).enter()
    driver(url, "c", modes[1]).enter()


def test_shared_drivers_lease_shard_by_shard(url: str) -> None:
    one, two = driver(url, "a", "shared"), driver(url, "b", "shared")
    one.enter()
    two.enter()
    assert [other.driver for other in two.others()] == ["a"]
    assert one.take("shards/x-0000") is None is one.take("shards/x-0000")
    assert two.take("shards/x-0000") == "a"
    assert two.take("shards/y-0000") is None
    one.end()
    two.beat()
    assert two.take("shards/x-0000") is None
    fs, root = storage.open_fs(url)
    assert storage.names(fs, f"{root}/leases/shards") == [
        "x-0000-000000.json",
        "x-0000-000001.json",
        "y-0000-000000.json",
    ]


def test_many_at_once(url: str) -> None:
    """Schedulers that fire at the same moment: exactly one works."""
    count = 5
    start, refused = threading.Barrier(count), threading.Semaphore(0)

    def work(_: int) -> bool:
        start.wait()
        try:
            with driving(url, "exclusive", TTL_S):
                return all(refused.acquire(timeout=60) for _ in range(count - 1))
        except Held:
            refused.release()
            return False

    with ThreadPoolExecutor(count) as pool:
        assert sorted(pool.map(work, range(count))) == [False] * (count - 1) + [True]
    assert numbers(url) == ["job-000000.json"]


def test_modes_at_once(tmp_path: Path) -> None:
    """A shared driver comes while an exclusive one takes the job: that one goes, and the shared one waits for it."""
    url = str(tmp_path)
    shared = driver(url, "shared", "shared")

    class Slow(Board):
        def create(self, lease: Lease) -> Lease:
            shared.beat()
            return super().create(lease)

    hasty = Driver(Slow(url), about("hasty"))
    with pytest.raises(Held, match="host-shared"):
        hasty.enter()
    entering = threading.Thread(target=shared.enter)
    entering.start()
    entering.join(0.3)
    assert entering.is_alive()
    hasty.end()
    entering.join(10)
    assert not entering.is_alive()


def test_signs_of_life_go_on_by_themselves(tmp_path: Path) -> None:
    """A driver that is busy for longer than its time to live loses nothing."""
    with driving(str(tmp_path), "exclusive", 1.0) as one:
        time.sleep(2.5)
        assert one.holds(JOB)
        with pytest.raises(Held):
            driver(str(tmp_path), "b").enter()
    assert len(numbers(str(tmp_path))) == 1


def test_a_sign_of_life_that_fails_is_given_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One refused request must not end the thread: everyone would take the driver for dead."""
    renewals: list[str] = []

    def flaky(renew: Callable[..., dict[str, float]]) -> Callable[..., dict[str, float]]:
        def renewed(board: Board, heartbeat: Heartbeat) -> dict[str, float]:
            renewals.append(heartbeat.driver)
            if len(renewals) == 3:  # two are given on entering
                raise RuntimeError("SlowDown")
            return renew(board, heartbeat)

        return renewed

    monkeypatch.setattr(Board, "renew", flaky(Board.renew))
    with driving(str(tmp_path), "exclusive", 1.0) as one:
        while len(renewals) < 4:
            time.sleep(0.05)
        one.keep_on()
    assert "no sign of life could be given: SlowDown" in caplog.text


def test_a_lost_answer_is_no_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The request is repeated below us, and then refused because its first try had succeeded."""
    create = storage.create

    def forgetful(*arguments: object) -> bool:
        create(*arguments)  # type: ignore[arg-type]
        return False

    monkeypatch.setattr(storage, "create", forgetful)
    one = driver(str(tmp_path), "a")
    one.enter()
    assert one.holds(JOB) and numbers(str(tmp_path)) == ["job-000000.json"]


def test_a_missing_right_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError("Access Denied")

    monkeypatch.setattr(Board, "renew", refused)
    with pytest.raises(
        storage.StorageError,
        match=r"no sign of life can be given in leases/ \(Access Denied\); the job needs the rights to create, replace",
    ):
        driver(str(tmp_path), "a").enter()


def test_a_heartbeat_of_another_release(tmp_path: Path) -> None:
    (tmp_path / "leases/drivers").mkdir(parents=True)
    (tmp_path / "leases/drivers/x.json").write_text('{"driver": "x", "mode": "cautious"}')
    with pytest.raises(storage.StorageError, match=r"leases/drivers/x\.json is not of this release"):
        driver(str(tmp_path), "a").enter()


def test_who_one_is(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What a refusal shows of a driver; and that its end may fail without a word lost on the way."""
    with caplog.at_level(logging.WARNING), driving(str(tmp_path), "shared", 60.0) as one:
        assert one.me.host and one.me.pid and one.me.command and one.me.started.endswith("+00:00")
        (tmp_path / f"leases/drivers/{one.me.driver}.json").unlink()
    assert "others count this driver as alive for 60 s" in caplog.text
