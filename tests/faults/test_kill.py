"""Processes killed or stopped at the worst moments: the same command goes on, and nothing differs from a quiet run."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from jobs import endings, extract, verify
from tests.faults.harness import (
    Contents,
    actors,
    contents,
    job,
    kill_all,
    markers,
    run,
    run_beside,
    spec_of,
    wait_until,
    write_shards,
)

pytestmark = [pytest.mark.ray, pytest.mark.slow]
SHARDS = 6


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_shards(tmp_path_factory.mktemp("shards"), SHARDS)


@pytest.fixture(scope="module")
def undisturbed(shards: str, tmp_path_factory: pytest.TempPathFactory) -> Contents:
    store = str(tmp_path_factory.mktemp("quiet") / "store")
    assert extract.run(spec_of(store, shards), serial=True) == endings.DONE
    return contents(store)


def test_an_actor_killed(shards: str, undisturbed: Contents, tmp_path: Path) -> None:
    """The job replaces it and ends well by itself."""
    store = tmp_path / "store"
    with job(spec_of(str(store), shards), tmp_path) as process:
        wait_until(lambda: markers(store), "the first marker")
        os.kill(actors(process.pid)[0], signal.SIGKILL)
        output, _ = process.communicate(timeout=200)
    assert process.returncode == endings.DONE, output
    assert "an actor died" in output and "is done again" in output
    assert contents(str(store)) == undisturbed
    assert verify.run(str(store), fast=False) == 0


def test_the_driver_killed(shards: str, undisturbed: Contents, tmp_path: Path) -> None:
    """With all its actors: what is committed stays, the rest is done by the same command, given at once."""
    store = tmp_path / "store"
    spec = spec_of(str(store), shards, lease_ttl_s=3.0)
    with job(spec, tmp_path) as process:
        wait_until(lambda: markers(store), "the first marker")
        kill_all(process.pid)
    before = {path.name: path.read_bytes() for path in markers(store)}
    assert 0 < len(before) < SHARDS
    code, output = run(spec, tmp_path)
    assert code == endings.DONE, output
    assert {path.name: path.read_bytes() for path in markers(store) if path.name in before} == before
    assert contents(str(store)) == undisturbed
    assert verify.run(str(store), fast=False) == 0


def test_a_paused_actor_wakes_up_late(shards: str, undisturbed: Contents, tmp_path: Path) -> None:
    """Another attempt has committed its shard by then: the late one loses, and harms nothing."""
    store = tmp_path / "store"
    spec = spec_of(str(store), shards, actors=1)
    with job(spec, tmp_path) as process:
        wait_until(lambda: markers(store), "the first marker")
        (paused,) = actors(process.pid)
        os.kill(paused, signal.SIGSTOP)
        claimed = len(list((store / "claims").iterdir()))
        run_beside(spec)
        assert contents(str(store)) == undisturbed
        os.kill(paused, signal.SIGCONT)
        output, _ = process.communicate(timeout=200)
    assert process.returncode == endings.DONE, output
    assert len(list((store / "claims").iterdir())) > claimed
    assert contents(str(store)) == undisturbed
    assert verify.run(str(store), fast=False) == 0


def test_an_actor_that_never_answers(shards: str, undisturbed: Contents, tmp_path: Path) -> None:
    """Is replaced after `stall_timeout_s`, without anyone's help."""
    store = tmp_path / "store"
    with job(spec_of(str(store), shards, actors=1, stall_timeout_s=3.0), tmp_path) as process:
        wait_until(lambda: markers(store), "the first marker")
        os.kill(actors(process.pid)[0], signal.SIGSTOP)
        output, _ = process.communicate(timeout=200)
    assert process.returncode == endings.DONE, output
    assert "no progress for" in output
    assert contents(str(store)) == undisturbed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_told_to_stop(number: signal.Signals, shards: str, undisturbed: Contents, tmp_path: Path) -> None:
    """It finishes what it has in hand, says how to go on, and its exit code is in the store as well."""
    store = tmp_path / "store"
    spec = spec_of(str(store), shards, actors=1)
    with job(spec, tmp_path) as process:
        wait_until(lambda: markers(store), "the first marker")
        os.killpg(process.pid, number)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == endings.STOPPED, output
    assert "the same command goes on from here" in output
    assert '"exit_code": 5' in next((store / "runs").iterdir()).read_text()
    assert 0 < len(markers(store)) < SHARDS
    assert extract.run(spec, serial=True) == endings.DONE
    assert contents(str(store)) == undisturbed


def test_a_shard_that_kills_its_actor(shards: str, undisturbed: Contents, tmp_path: Path) -> None:
    """It is set aside after three deaths, alone: no other shard is blamed. Retried when it can pass, it is stored."""
    store = tmp_path / "store"
    spec = spec_of(str(store), shards)
    code, output = run(spec, tmp_path, env=inject(tmp_path, "shard.id == '02.tar' and die()"))
    assert code == endings.SET_ASIDE, output
    assert output.count("an actor died") == 3, output
    seen = contents(str(store))
    assert {shard for (shard, key) in seen if key is None} == {"02.tar"}
    assert seen["02.tar", None][0] == "failed worker-died"  # type: ignore[index]
    assert {item for item in seen.items() if item[0][1]} == {
        item for item in undisturbed.items() if item[0][0] != "02.tar"
    }
    assert extract.run(spec, serial=True) == endings.SET_ASIDE, (
        "a finished job does nothing, and says what is missing"
    )
    assert extract.run(spec, serial=True, retry_failed=True) == endings.DONE
    assert contents(str(store)) == undisturbed


def test_a_stage_that_hangs(shards: str, undisturbed: Contents, tmp_path: Path) -> None:
    """The actor answers, but its read never ends, as on a network disk that went away: it is replaced."""
    store = tmp_path / "store"
    spec = spec_of(str(store), shards, actors=1, stall_timeout_s=4.0)
    once = tmp_path / "once"
    assert extract.run(spec, serial=True, limit=1) == endings.DONE, "a store that is there needs no probe"
    code, output = run(spec, tmp_path, env=inject(tmp_path, f"first({str(once)!r}) and time.sleep(3600)"))
    assert once.exists() and code == endings.DONE, output
    assert "no progress for" in output
    assert contents(str(store)) == undisturbed


def test_a_broken_actor_beside_a_good_one(shards: str, undisturbed: Contents, tmp_path: Path) -> None:
    """A device in a sticky error fails everything at once; it must not eat the job while the other one works."""
    store = tmp_path / "store"
    spec = spec_of(str(store), shards)
    broken = tmp_path / "broken"
    assert extract.run(spec, serial=True, limit=1) == endings.DONE, "a store that is there needs no probe"
    fault = f"(first({str(broken)!r}) or mine({str(broken)!r})) and fail('CUDA error: unspecified launch failure')"
    code, output = run(spec, tmp_path, env=inject(tmp_path, fault))
    assert broken.exists() and code == endings.DONE, output
    assert output.count("unspecified launch failure") == 1, "retired after its first failure"
    assert contents(str(store)) == undisturbed


def inject(folder: Path, fault: str) -> dict[str, str]:
    """An environment in which actors evaluate `fault` before they read a shard: known to the test alone."""
    (folder / "inject").mkdir()
    (folder / "inject" / "sitecustomize.py").write_text(_INJECTION.replace("FAULT", fault))
    return {"PYTHONPATH": f"{folder / 'inject'}{os.pathsep}{os.getcwd()}"}


_INJECTION = """
import os, sys, time

def first(path):  # in this job, whichever process it is
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return False
    open(path, "w").write(str(os.getpid()))
    return True

def mine(path):
    return open(path).read() == str(os.getpid())

def fail(message):
    raise RuntimeError(message)

def die():
    os.kill(os.getpid(), 9)

class Finder:
    def find_spec(self, name, path, target=None):
        if name == "pipeline.batches":
            sys.meta_path.remove(self)
            import pipeline.shards
            read = pipeline.shards.read_shard
            def faulty(shard, *wanted):
                FAULT
                return read(shard, *wanted)
            pipeline.shards.read_shard = faulty

sys.meta_path.insert(0, Finder())
"""
