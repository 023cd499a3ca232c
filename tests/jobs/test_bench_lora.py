"""The measurement of LoRA at its smallest: what it reports, never how fast anything is."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from jobs.benchmarks import lora
from jobs.benchmarks.workbench import QUICK, Workbench


def test_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A switch, and passes beside those without and beside PEFT's, of two files of different reach."""
    for name, value in {"_BATCH": 1, "_SIDE": 64, "_PASSES": 1}.items():
        monkeypatch.setattr(lora, name, value)
    found = lora.measure(Workbench(tmp_path, None, dataclasses.replace(QUICK, repeats=0)))
    assert [(line.what, line.baseline.what) for line in found.lines if "every layer" in line.what] == [
        ("switch, every layer", "a pass without"),
        ("pass, in force, every layer", "without"),
        ("pass, in force, every layer", "in PEFT's layers"),
        ("pass, out of force, every layer", "without"),
    ]
    assert 0 < found.facts["layers: transformer blocks"] < found.facts["layers: every layer"]
    assert all(value > 0 for line in found.lines for value in (line.ours.median, line.baseline.median))
