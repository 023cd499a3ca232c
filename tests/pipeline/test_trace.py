"""A trace is a file that trace viewers read: bars on lines, in one time, and bounded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline import trace
from pipeline.meter import Span
from pipeline.trace import Trace, spans_each


def span(began: float, seconds: float = 1.0, thread: str = "read", stage: Any = "read") -> Span:
    return Span(stage, thread, "a.tar", began, seconds)


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_workers_are_processes_threads_are_lines_and_times_are_common(tmp_path: Path) -> None:
    made = Trace(str(tmp_path / "trace.json"))
    made.take("node-b process 7", [span(101.5), span(102.0, 0.25, "compute", "forward")])
    made.take("node-a process 9", [span(100.0)])
    made.take("node-b process 7", [span(103.0)])
    made.write()
    events = read(tmp_path / "trace.json")["traceEvents"]
    names = {
        (event["name"], event["args"]["name"]): (event["pid"], event.get("tid"))
        for event in events
        if event["ph"] == "M"
    }
    first, reading = names["process_name", "node-b process 7"], names["thread_name", "read"]
    assert first[0] != names["process_name", "node-a process 9"][0]
    bars = {(e["name"], e["ts"], e["dur"], e["pid"]) for e in events if e["ph"] == "X"}
    b, a = first[0], names["process_name", "node-a process 9"][0]
    assert bars == {
        ("read", 0, 1_000_000, a),
        ("read", 1_500_000, 1_000_000, b),
        ("forward", 2_000_000, 250_000, b),
        ("read", 3_000_000, 1_000_000, b),
    }
    assert reading[1] != names["thread_name", "compute"][1]
    assert {e["args"]["shard"] for e in events if e["ph"] == "X"} == {"a.tar"}


def test_it_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "MOST_SPANS", 5)
    made = Trace(str(tmp_path / "trace.json"))
    for worker in range(4):
        made.take(f"{worker}", [span(worker)] * 3)
    made.write()
    assert sum(event["ph"] == "X" for event in read(tmp_path / "trace.json")["traceEvents"]) == 5


@pytest.mark.parametrize("workers", [1, 7, 64, 1000])
def test_every_worker_has_a_share_of_the_file(workers: int) -> None:
    assert 0 < workers * spans_each(workers) <= trace.MOST_SPANS


def test_a_file_that_cannot_be_written_is_refused_before_the_job(tmp_path: Path) -> None:
    """Not after hours of work."""
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        Trace(str(tmp_path / "file" / "trace.json"))


def test_a_file_that_can_no_longer_be_written_does_not_fail_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = Trace(str(tmp_path / "trace.json"))

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("pipeline.storage.put", full)
    made.write()
    assert "no trace was written: No space left on device" in caplog.text


def test_on_s3(s3: Any) -> None:
    from pipeline import storage

    url = f"{s3()}/trace.json"
    made = Trace(url)
    made.take("a", [span(1.0)])
    made.write()
    fs, path = storage.open_fs(url)
    assert len(json.loads(fs.cat_file(path))["traceEvents"]) == 3
