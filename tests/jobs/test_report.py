"""What people read."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from jobs import report
from schemas.receipts import RunRecord


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 * 2**30, "3.0 GiB"), (2**52, "4096.0 TiB")],
)
def test_sizes(number: int, text: str) -> None:
    assert report.size(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.25, "0.2 s"), (59, "59.0 s"), (61, "1 min 01 s"), (7322, "2 h 02 min")]
)
def test_durations(seconds: float, text: str) -> None:
    assert report.duration(seconds) == text


def test_plain_lines_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """No control characters in a batch job's log, and not a line a second."""
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr("jobs.report.time.monotonic", lambda: float(next(clock)))
    out = io.StringIO()
    with report.ProgressReport(Console(file=out, width=100), rows=100) as show:
        for images in (10, 20, 30):
            show({"images": images, "bytes_written": 2**20, "bad": 1})
    lines = [line for line in out.getvalue().splitlines() if line.strip()]
    assert lines == ["extract: 20/100 images  1.0/s  1.0 MiB  left 1 min 20 s  bad 1"]
    assert "\x1b" not in out.getvalue()


def test_a_summary_names_what_is_bad_and_what_is_set_aside() -> None:
    record = RunRecord(
        exit_code=3, outcome="done, but", started="t", seconds=2.0, images=10, counts={"ok": 8, "no-image": 2},
        set_aside=["b.tar"], device="cpu", actors=1,
    )  # fmt: skip
    out = io.StringIO()
    report.show_summary(Console(file=out, width=100), record, "s3://bucket/store")
    for expected in ("done, but", "10 in 2.0 s (5.0 a second)", "bad: no-image", "b.tar", "--retry-failed"):
        assert expected in out.getvalue()
