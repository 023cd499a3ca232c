"""Several processes make the head that one makes, but for rounding."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from safetensors.torch import load_file

from jobs import train_head
from jobs.endings import DONE, FAILED
from pipeline import cluster
from pipeline.heads import parallel
from schemas.head import HeadSpec, Results
from tests.labelled import spec_of


def spec(labelled: Path, out: Path, processes: int, **changes: Any) -> HeadSpec:
    """Pixels drawn at random, looks on the way, two splits."""
    return spec_of(
        labelled,
        out,
        "label-scarce",
        task={"steps": 6, "validate_every": 3, "members": 2, "pixels": 16},
        splits={"type": "random", "count": 2, "train": 12, "validation": 4},
        processes=processes,
        **changes,
    )


@pytest.mark.ray
@pytest.mark.slow
def test_two_processes_train_as_one(labelled: Path, tmp_path: Path) -> None:
    """Each computes half of a batch; the first one writes what one alone would write."""
    alone, together = (spec(labelled, tmp_path / str(count), count) for count in (1, 2))
    for job in (alone, together):
        assert train_head.run(job) == DONE
    found, expected = (
        Results.model_validate_json(Path(job.head, "results.json").read_bytes()) for job in (together, alone)
    )
    assert found.head == expected.head
    assert found.metrics["mIoU"] == pytest.approx(expected.metrics["mIoU"], abs=0.01)
    for split in ("split-0", "split-1"):
        one, other = (load_file(Path(job.head, split, "head.safetensors")) for job in (alone, together))
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert torch.allclose(value, other[name], rtol=1e-3, atol=1e-4), name
        names = [{path.name for path in Path(job.head, split).iterdir()} for job in (alone, together)]
        assert names[0] == names[1]
        logs = [
            Path(job.work_folder, split, "log.jsonl").read_text().splitlines() for job in (alone, together)
        ]
        assert len(logs[0]) == len(logs[1]) == 6


@pytest.fixture
def share(monkeypatch: pytest.MonkeyPatch) -> cluster.Share:
    """Of a machine with two CPUs on which Ray was not really started."""
    found = cluster.Share("cpu", 2, 2, started_here=True)
    monkeypatch.setattr(cluster, "connect", lambda _: found)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    return found


@pytest.mark.usefixtures("share")
def test_a_process_that_fails_fails_the_job(
    labelled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With the last line of what it said."""

    class Trainer:
        def __init__(self, process: Any, *, train_loop_config: dict[str, Any], **_: Any) -> None:
            assert HeadSpec.model_validate(train_loop_config).device == "cpu"

        def fit(self) -> None:
            raise RuntimeError("Training failed:\n[Rank 1]\nOSError: the disk is full\n")

    monkeypatch.setattr(parallel, "TorchTrainer", Trainer)
    with caplog.at_level(logging.ERROR, "gatehouse"):
        assert train_head.run(spec(labelled, tmp_path / "head", 2, device="auto")) == FAILED
    assert "a training process failed: OSError: the disk is full" in caplog.text


@pytest.mark.usefixtures("share")
def test_more_processes_than_the_machine_has_room_for(labelled: Path, tmp_path: Path) -> None:
    """Ray would wait for another machine, for ever."""
    with pytest.raises(
        ValueError, match="processes: 4 take a CPU each, and this machine has 2; lower it, or give"
    ):
        train_head.run(spec(labelled, tmp_path / "head", 4))
