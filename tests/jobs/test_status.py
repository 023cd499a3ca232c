"""What `gatehouse status` prints; how it comes by it is tested in tests/pipeline/test_status.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from jobs import endings, status
from jobs.cli import app
from schemas.layout import heartbeat_path
from schemas.status import Status
from tests.pipeline.test_status import heartbeat, put


def test_for_people(built: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert status.run(str(built / "store"), shards=(), usd_per_hour=3.0, as_json=False) == endings.DONE
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.replace("│", " ").splitlines()]
    for expected in ("shards done 2 of 2", "rows bad 2", "bad: no-caption 1", "status: done"):
        assert expected in lines
    assert any(line.startswith("last run done (exit code 0)") for line in lines)
    assert any("USD" in line for line in lines if line.startswith("runs ended 1"))
    assert not any(line.startswith("to finish") for line in lines)


def test_who_is_at_work_and_what_could_not_be_told(
    small_store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    put(str(small_store), heartbeat_path("d"), heartbeat(), age_s=10)
    put(str(small_store), heartbeat_path("e"), b"[bold]")
    status.run(str(small_store), shards=(), usd_per_hour=None, as_json=False)
    output = capsys.readouterr().out
    assert "status: at work" in output
    assert "node7, process 12, exclusive, since 2026-01-01" in output and "gatehouse extract a.yaml" in output
    assert "note: 1 objects in leases/drivers/ are not of this release" in output


def test_brackets_in_a_command_are_no_markup(
    small_store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    command = "gatehouse extract a.yaml --set 'input.shards=[/data/a.tar]'"
    put(str(small_store), heartbeat_path("d"), heartbeat(command=command))
    status.run(str(small_store), shards=(), usd_per_hour=None, as_json=False)
    assert command in capsys.readouterr().out


def test_for_machines(built: Path) -> None:
    answer = CliRunner().invoke(app, ["status", str(built / "store"), "--json", "--price", "2.5"])
    assert answer.exit_code == 0
    found = Status.model_validate(json.loads(answer.output))
    assert found.rows.good == 8 and found.left is not None and found.left.usd == 0


def test_no_store_is_an_error_of_the_user(tmp_path: Path) -> None:
    answer = CliRunner().invoke(app, ["status", str(tmp_path / "nothing")])
    assert answer.exit_code == 2
    assert "no feature store at" in answer.output
