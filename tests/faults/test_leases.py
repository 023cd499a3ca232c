"""Drivers that meet on one store: one pauses, one is killed, two share. All in processes that a test can hurt."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from jobs import endings, extract, verify
from tests.faults.harness import Contents, contents, job, kill_all, markers, spec_of, wait_until, write_shards

pytestmark = pytest.mark.slow
SHARDS = 16


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_shards(tmp_path_factory.mktemp("shards"), SHARDS)


@pytest.fixture(scope="module")
def undisturbed(shards: str, tmp_path_factory: pytest.TempPathFactory) -> Contents:
    store = str(tmp_path_factory.mktemp("quiet") / "store")
    assert extract.run(spec_of(store, shards), serial=True) == endings.DONE
    return contents(store)


def in_vain(store: Path) -> int:
    """Shards that were begun more often than once."""
    return len(list((store / "claims").iterdir())) - SHARDS


def images(store: Path) -> list[int]:
    """That each run did which came to its end."""
    return [json.loads(path.read_text())["images"] for path in (store / "runs").iterdir()]


@contextmanager
def once_two_drivers_are_there(store: Path, then: tuple[int, signal.Signals]) -> Iterator[None]:
    """Send a signal to a process group as soon as a second driver has given its first sign of life."""

    def wait() -> None:
        wait_until(lambda: len(list((store / "leases/drivers").glob("*.json"))) == 2, "a second driver")
        os.killpg(*then)

    thread = threading.Thread(target=wait)
    thread.start()
    yield
    thread.join()


def test_a_paused_owner(
    shards: str, undisturbed: Contents, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Once it counts as dead, another driver takes over and finishes; the first one wakes up, and nothing is lost."""
    store = tmp_path / "store"
    spec = spec_of(str(store), shards, lease_ttl_s=3.0)
    with job(spec, tmp_path, "--serial") as process:
        wait_until(lambda: markers(store), "the first marker")
        os.killpg(process.pid, signal.SIGSTOP)
        assert extract.run(spec, serial=True) == endings.DONE
        assert (
            f"process {process.pid} (extract.py" in caplog.text
            and "what it held is taken over" in caplog.text
        )
        assert contents(str(store)) == undisturbed
        os.killpg(process.pid, signal.SIGCONT)
        output, _ = process.communicate(timeout=200)
    assert process.returncode == endings.HELD, output
    assert "another one has taken the job over; this one hands out nothing more" in output
    assert in_vain(store) <= 1, "at most what it had in hand"
    assert contents(str(store)) == undisturbed
    assert verify.run(str(store), fast=False) == 0


def test_two_share_a_job(shards: str, undisturbed: Contents, tmp_path: Path) -> None:
    """Both come to the end, each has done a part, and none of it was done twice."""
    store = tmp_path / "store"
    spec = spec_of(str(store), shards)
    with job(spec, tmp_path, "--serial", "--share") as process:
        wait_until(lambda: markers(store), "the first marker")
        os.killpg(process.pid, signal.SIGSTOP)
        with once_two_drivers_are_there(store, (process.pid, signal.SIGCONT)):
            assert extract.run(spec, serial=True, share=True) == endings.DONE
        output, _ = process.communicate(timeout=200)
    assert process.returncode == endings.DONE, output
    assert in_vain(store) == 0
    assert sum(images(store)) == len(undisturbed) and min(images(store)) > 0
    assert contents(str(store)) == undisturbed
    assert verify.run(str(store), fast=False) == 0


def test_one_that_shares_is_killed(shards: str, undisturbed: Contents, tmp_path: Path) -> None:
    """The other one does its shards too, once it counts as dead."""
    store = tmp_path / "store"
    spec = spec_of(str(store), shards, lease_ttl_s=3.0)
    with job(spec, tmp_path, "--serial", "--share") as process:
        wait_until(lambda: markers(store), "the first marker")
        with once_two_drivers_are_there(store, (process.pid, signal.SIGKILL)):
            assert extract.run(spec, serial=True, share=True) == endings.DONE
        kill_all(process.pid)
    assert in_vain(store) <= 1
    assert contents(str(store)) == undisturbed
    assert verify.run(str(store), fast=False) == 0


def test_a_growing_folder(tmp_path: Path) -> None:
    """Runs on a schedule: each does what is new, by a lease of its own, and one that finds nothing leaves nothing."""
    store = tmp_path / "store"
    spec = spec_of(str(store), write_shards(tmp_path / "shards", 1, images=4))
    for count in (1, 1, 2):
        write_new(tmp_path / "shards", count)
        assert extract.run(spec, serial=True) == endings.DONE
        assert len(markers(store)) == count
    leases = sorted(path.name for path in (store / "leases").glob("*.json"))
    assert leases == ["job-000000.json", "job-000001.json"]
    assert list((store / "leases/drivers").iterdir()) == []


def write_new(folder: Path, count: int) -> None:
    """Shards up to a number, without touching those that are there."""
    write_shards(folder.parent / "all", count, images=4)
    for path in sorted((folder.parent / "all").iterdir()):
        if not (folder / path.name).exists():
            path.rename(folder / path.name)
