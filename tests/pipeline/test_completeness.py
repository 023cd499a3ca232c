"""What a store says of what it lacks."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pipeline import FeatureStore
from pipeline.completeness import completeness
from schemas.layout import heartbeat_path
from tests import stores
from tests.pipeline.test_status import heartbeat, put, run_record


def test_a_finished_store_has_no_gaps(built: Path) -> None:
    found = completeness(FeatureStore(str(built / "store")))
    assert found.gaps == [] and found.cut == [] and found.shards == 2
    assert found.last_run is not None and found.last_run.exit_code == 0


def test_a_shard_that_a_limit_cut(small_store: Path) -> None:
    """Its other samples would be missing without a word."""
    stores.edit_marker(small_store, "sub/b.tar", complete=False)
    found = completeness(FeatureStore(str(small_store)))
    assert found.cut == ["sub/b.tar"]
    assert found.gaps == ["a limit cut 1 of 2 shards, 'sub/b.tar' first"]


def test_a_store_that_is_being_written(small_store: Path) -> None:
    for run in (small_store / "runs").iterdir():
        run.unlink()
    assert completeness(FeatureStore(str(small_store))).gaps == ["no run over it has ended yet"]
    for folder in ("markers", "compact"):
        for file in (small_store / folder).iterdir():
            file.unlink()
    found = completeness(FeatureStore(str(small_store)))
    assert found.gaps == ["nothing is committed yet", "no run over it has ended yet"]


def test_the_run_that_ended_last_counts(small_store: Path) -> None:
    """Of drivers that shared a job, one that came late was stopped, and the one that came first finished."""
    (done,) = (small_store / "runs").iterdir()
    late = done.parent / f"2999-{done.name}"
    late.write_text(json.dumps(json.loads(done.read_text()) | {"exit_code": 5, "outcome": "stopped"}))
    assert completeness(FeatureStore(str(small_store))).gaps == ["its last run ended with code 5: stopped"]
    os.utime(late, (done.stat().st_mtime - 10,) * 2)
    assert completeness(FeatureStore(str(small_store))).gaps == []


def test_a_run_that_was_told_to_leave_shards(small_store: Path) -> None:
    """A limit that ends between two shards cuts none."""
    (done,) = (small_store / "runs").iterdir()
    done.write_text(json.dumps(json.loads(done.read_text()) | {"left": 3}))
    assert completeness(FeatureStore(str(small_store))).gaps == [
        "its last run was told to leave 3 shards of its input"
    ]


@pytest.mark.parametrize("record", [b'{"gpu": 8}', run_record(exit_code=6)])
def test_records_that_say_nothing_of_the_store(small_store: Path, record: bytes) -> None:
    """Of another release; of a driver that woke up and found the job done."""
    put(str(small_store), "runs/later.json", record, age_s=-5)
    found = completeness(FeatureStore(str(small_store)))
    assert found.gaps == [] and found.last_run is not None and found.last_run.exit_code == 0


def test_a_driver_that_was_dead_when_a_later_run_ended(small_store: Path) -> None:
    """What it left undone, the later one has done; only `gc --abandoned` would take its heartbeat away."""
    (done,) = (small_store / "runs").iterdir()
    ended = done.stat().st_mtime
    put(str(small_store), heartbeat_path("d"), heartbeat())
    beat = small_store / heartbeat_path("d")
    os.utime(beat, (ended - 30,) * 2)
    (gap,) = completeness(FeatureStore(str(small_store))).gaps
    assert gap.startswith("driver d is at work, or died"), "it may be one that shares, and beats every 20 s"
    os.utime(beat, (ended - 62,) * 2)
    assert completeness(FeatureStore(str(small_store))).gaps == []


def test_the_last_run_counts(small_store: Path) -> None:
    """A run that was stopped, after one that was over: it was to add shards, and did not add all."""
    (done,) = (small_store / "runs").iterdir()
    record = json.loads(done.read_text())
    for year, code, outcome in (("2999", 5, "stopped"), ("3000", 3, "set aside")):
        (done.parent / f"{year}-{done.name}").write_text(
            json.dumps(record | {"exit_code": code, "outcome": outcome})
        )
        gaps = completeness(FeatureStore(str(small_store))).gaps
        assert gaps == (["its last run ended with code 5: stopped"] if code == 5 else [])


def test_a_driver_that_is_at_work_or_died(small_store: Path) -> None:
    """A second run over more shards looks like none by markers and records."""
    folder = small_store / "leases" / "drivers"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "abc.json").write_text("{}")
    (gap,) = completeness(FeatureStore(str(small_store))).gaps
    assert gap.startswith("driver abc is at work, or died")
