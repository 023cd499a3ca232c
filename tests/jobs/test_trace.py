"""`gatehouse extract --trace FILE`: when each stage of each worker was at work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs import endings, extract
from pipeline.meter import STAGES
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


def test_a_place_that_cannot_be_written_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    spec = spec_of(str(tmp_path / "store"), write_shards(tmp_path / "shards", shards=1, images=2))
    with pytest.raises(OSError, match="file"):
        extract.run(spec, serial=True, trace=str(tmp_path / "file" / "trace.json"))
    assert not (tmp_path / "store" / "manifest.json").exists()
