"""The results of `make bench` as JSON, as a table on the terminal, and as a table for a page."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.table import Table

from jobs.benchmarks.figures import Figure, Line, Measurement
from pipeline import device

_LIBRARIES = ("torch", "diffusers", "numpy", "zarr", "numcodecs", "pyarrow", "s3fs", "boto3", "ray")
_DIGITS = 3


def machine() -> dict[str, Any]:
    """What the figures depend on beside the code."""
    return {
        "device": device.name("cpu"),
        "cpus": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
        "gatehouse": importlib.metadata.version("gatehouse"),
        "libraries": {name: importlib.metadata.version(name) for name in _LIBRARIES},
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def to_json(machine: dict[str, Any], scale: str, measurements: dict[str, Measurement]) -> dict[str, Any]:
    """All there is to know, as plain JSON."""
    found = {
        name: {"lines": [line.to_json() for line in one.lines], "facts": one.facts}
        for name, one in measurements.items()
    }
    return {"version": 1, "scale": scale, "machine": machine, "measurements": found}


def show(console: Console, name: str, measurement: Measurement) -> None:
    """One measurement as a table."""
    table = Table("", "ours", "baseline", "", "unit", "ratio", title=name, title_justify="left")
    for line in measurement.lines:
        table.add_row(
            line.what, _figure(line.ours), _figure(line.baseline), line.baseline.what, line.unit, _ratio(line)
        )
    console.print(table)


def markdown(measurements: dict[str, Measurement]) -> str:
    """All lines as one table of a page."""
    lines = ["| what | ours | beside | unit | ratio |", "|---|---|---|---|---|"]
    for name, measurement in measurements.items():
        for line in measurement.lines:
            beside = f"{_number(line.baseline.median)} ({line.baseline.what})"
            cells = [f"{name}: {line.what}", _number(line.ours.median), beside, line.unit, _ratio(line)]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _ratio(line: Line) -> str:
    return f"{line.ratio:.2f} ({line.better} is better)"


def _figure(figure: Figure) -> str:
    if len(figure.values) == 1:
        return _number(figure.median)
    return f"{_number(figure.median)} ({_number(min(figure.values))} - {_number(max(figure.values))})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.{_DIGITS}g}"
