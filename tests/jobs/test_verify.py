"""What `gatehouse verify` prints and returns; the faults themselves are tested in tests/pipeline/test_verify.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs import verify
from tests.stores import CHANNELS, TAPS, block


def test_a_sound_store(built: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify.run(str(built / "store"), fast=False) == verify.SOUND
    output = capsys.readouterr().out
    assert "verify: sound" in output
    assert "every byte read" in output


def test_a_fault(small_store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Scripts read the exit code, people the name of the object."""
    block(small_store, 0).unlink()
    assert verify.run(str(small_store), fast=True) == verify.FAULTY
    output = capsys.readouterr().out
    assert f"fault: a.tar: features/plain/{TAPS[0]}/c/0/0/0/0: is missing\n" in output
    assert "verify: faulty" in output


def test_a_warning_is_no_fault(small_store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = small_store / "features" / "plain" / TAPS[0] / "zarr.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"shape": [0, CHANNELS[0], 2, 2]}))
    assert verify.run(str(small_store), fast=True) == verify.SOUND
    assert "warning: features/plain/" in capsys.readouterr().out
