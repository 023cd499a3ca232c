"""What `gatehouse presets` prints."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs.cli import app
from pipeline import presets
from schemas.specfile import load


def test_the_table_has_every_preset_with_its_source_and_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = CliRunner().invoke(app, ["presets"])
    assert result.exit_code == 0
    for name in presets.names():
        preset = presets.read(name)
        line = next(line for line in result.stdout.splitlines() if f" {name} " in line)
        assert f" {preset.passes} " in line and "MiB" in line
        assert f"{name}: {preset.what}" in result.stdout and preset.source in result.stdout


def test_a_preset_is_printed_ready_for_a_file(tmp_path: Path) -> None:
    """To the byte, with nothing around it."""
    result = CliRunner().invoke(app, ["presets", "gate-segmentation"])
    assert result.stdout == presets.read("gate-segmentation").text
    path = tmp_path / "spec.yaml"
    path.write_text(result.stdout)
    assert len(load(str(path)).groups) == 3


def test_a_wrong_name_is_a_message() -> None:
    result = CliRunner().invoke(app, ["presets", "clean-dift"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "no preset 'clean-dift'; nearest: cleandift" in result.stderr
