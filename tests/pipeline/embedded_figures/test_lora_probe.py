from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import embedded, families
from pipeline.embedded_figures import lora_probe
from pipeline.embedded_figures.figure import Goal
from pipeline.embedded_figures.probes import ALL_TAPS, Protocol, best_tap
from pipeline.embedded_figures.scenes import read_scenes
from pipeline.linear_probe import Training
from tests import loras

PROTOCOL = Protocol(4, 2, 1, Training(side=8, steps=2, batch=16))


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    backbone: Any = families.load(Path(embedded.BACKBONE), dtype=torch.float32, device="cpu")
    path = tmp_path_factory.mktemp("loras") / "any.safetensors"
    loras.locon(backbone.network, backbone.encoders["text_encoder"]).save(path)
    return path


def test_with_and_without(lora: Path) -> None:
    """Rows differ by the LoRA alone; every seed has a number on every tap."""
    scenes = read_scenes("embedded", 6)
    scores = lora_probe.lora_scores(Path(embedded.BACKBONE), scenes, {"any": lora}, PROTOCOL)
    assert list(scores) == ["t = 50", "any, t = 50", "t = 200", "any, t = 200"]
    assert all(len(by_tap) == 5 for by_tap in scores.values())
    assert all(values.shape == (2,) for by_tap in scores.values() for values in by_tap.values())


def test_figures() -> None:
    """Differences are paired by seed, and those on the best tap have a goal."""
    taps = {"a": np.array([10.0, 20.0]), "b": np.array([5.0, 5.0]), ALL_TAPS: np.array([30.0, 40.0])}
    better = {tap: values + np.array([1.0, 2.0]) for tap, values in taps.items()}
    scores = {"t = 50": taps, "x, t = 50": better, "t = 200": taps, "x, t = 200": taps}
    assert best_tap(scores) == "a"
    found = lora_probe.figures(scores, ["x"])
    assert [(one.what.split(", ")[1], one.value.mean) for one in found[:4]] == [
        ("a: x", 1.5),
        (f"{ALL_TAPS}: x", 1.5),
        ("a: x", 0),
        (f"{ALL_TAPS}: x", 0),
    ]
    assert [one.goal for one in found[:4]] == [Goal("above", 0), None, Goal("above", 0), None]
    assert len(found) == 4 + 4 * 3
