"""`gatehouse extract --trace FILE`: when each stage of each worker was at work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import endings, extract
from pipeline.meter import STAGES
from schemas.specfile import dump
from tests.faults.harness import spec_of, write_shards


def test_a_trace_of_the_whole_job(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", shards=2, images=6)
    spec = spec_of(str(tmp_path / "store"), shards)
    path = tmp_path / "trace.json"
    assert extract.run(spec, serial=True, trace=str(path)) == endings.DONE
    events = [event for event in json.loads(path.read_text())["traceEvents"] if event["ph"] == "X"]
    assert {event["name"] for event in events} == set(STAGES)
    assert {event["args"]["shard"] for event in events} == {"00.tar", "01.tar"}
    assert sum(event["name"] == "forward" for event in events) == 4, "two batches a shard"
    assert all(event["ts"] >= 0 and event["dur"] > 0 for event in events)


@pytest.mark.ray
def test_on_ray_as_one_of_several_drivers_with_json_logs(tmp_path: Path) -> None:
    """As a cluster's job is started: actors' work is in the trace, and every line of the log is one of JSON."""
    spec = spec_of(str(tmp_path / "store"), write_shards(tmp_path / "shards", shards=6, images=4))
    (tmp_path / "spec.yaml").write_text(dump(spec))
    command = [sys.executable, "-m", "jobs.extract", "spec.yaml", "--share", "--trace", "trace.json"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "GATEHOUSE_LOG": "json", "PYTHONPATH": os.getcwd()},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == endings.DONE, done.stderr
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert {"gatehouse", "ray._private.worker"} <= {line["logger"] for line in lines}
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert {event["args"]["shard"] for event in events if event["ph"] == "X"} == {
        f"{number:02d}.tar" for number in range(6)
    }
    assert list(tmp_path.glob("store/leases/shards/*.json")) and not list(tmp_path.glob("store/leases/job-*"))


def test_a_place_that_cannot_be_written_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    spec = spec_of(str(tmp_path / "store"), write_shards(tmp_path / "shards", shards=1, images=2))
    with pytest.raises(OSError, match="file"):
        extract.run(spec, serial=True, trace=str(tmp_path / "file" / "trace.json"))
    assert not (tmp_path / "store" / "manifest.json").exists()
