from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from pipeline.heads import follow
from pipeline.heads.follow import STOP, following
from pipeline.training.loop import LOG
from tests.faults.harness import wait_until


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "_LOOK_EVERY_S", 0.01)


def write(work: Path, split: int, step: int, rest: str = "") -> None:
    path = work / f"split-{split}" / LOG
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps({"step": step, "loss": step / 10}) + "\n" + rest)


def test_new_steps_are_told(tmp_path: Path) -> None:
    """Those of before are not, a line in the making is not, and each once."""
    told: list[tuple[int, int, float]] = []
    write(tmp_path, 0, 5)
    asked = threading.Event()
    with following(
        tmp_path, [0, 1], lambda split, step, logged: told.append((split, step, logged["loss"])), asked
    ):
        write(tmp_path, 0, 6)
        wait_until(lambda: told == [(0, 6, 0.6)], "step 6")
        write(tmp_path, 1, 1, '{"step": 2, "lo')
        wait_until(lambda: told[1:] == [(1, 1, 0.1)], "step 1 of the other split")
        (tmp_path / "split-1" / LOG).write_text('{"step": 1, "loss": 0.1}\n{"step": 2, "loss": 0.2}\n')
        wait_until(lambda: told[2:] == [(1, 2, 0.2)], "step 2")
    assert not [thread for thread in threading.enumerate() if thread.name == "follow"]


def test_it_ends_with_what_it_follows(tmp_path: Path) -> None:
    with (
        pytest.raises(ValueError, match="failed"),
        following(tmp_path, [0], lambda *_: None, threading.Event()),
    ):
        raise ValueError("failed")
    assert not [thread for thread in threading.enumerate() if thread.name == "follow"]


def test_processes_are_told_to_stop_by_a_file(tmp_path: Path) -> None:
    """Which is gone afterwards, and one of an earlier run too: it would stop the next one at its first step."""
    (tmp_path / STOP).touch()
    asked = threading.Event()
    with following(tmp_path, [0], lambda *_: None, asked):
        assert not (tmp_path / STOP).exists()
        asked.set()
        wait_until((tmp_path / STOP).exists, "the file")
    assert not (tmp_path / STOP).exists()
