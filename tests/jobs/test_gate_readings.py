from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from jobs import gate_readings
from pipeline.linear_probe import Training
from schemas.gate import Candidate


def test_its_interval() -> None:
    values = np.arange(8.0)
    found, low, high = gate_readings.correlation(values, values[::-1])
    assert found == pytest.approx(-1) and low == pytest.approx(-1) and high == pytest.approx(-1)


def test_means_over_taps() -> None:
    lines: list[gate_readings.Line] = [
        {"candidate": "a", "t": 50, "tap": tap, "miou": value, "literal": 1.0, "own": 2.0, "shape": value}
        for tap, value in (("x", 1.0), ("y", 3.0))
    ]
    [one] = gate_readings.by_candidate(lines)
    assert one == {"candidate": "a", "t": 50, "miou": 2.0, "literal": 1.0, "own": 2.0, "shape": 2.0}


def test_on_a_few_scenes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every candidate at every tap has a line; prompts that tell the answer are in no correlation."""
    chosen = [Candidate(name="caption", prompt="{caption}"), Candidate(name="one", prompt="a photo, sharp")]
    monkeypatch.setattr(gate_readings, "candidates", lambda _: chosen)
    monkeypatch.setattr(gate_readings, "Training", lambda: Training(side=8, steps=2, batch=8))
    gate_readings.main("embedded", out=tmp_path / "r.json", scenes=8, seeds=1, t=[50])
    found = json.loads((tmp_path / "r.json").read_text())
    assert [line["candidate"] for line in found["lines"]] == ["caption"] * 4 + ["one"] * 4
    assert set(found["spearman"]) == {"taps", "candidates"}
