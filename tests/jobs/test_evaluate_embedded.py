"""The whole evaluation on a few scenes: what it writes and what it leaves out, never how good the backbone is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from jobs import evaluate_embedded
from jobs.evaluate_embedded import FIGURES, Evaluation, run
from pipeline import embedded, families
from pipeline.embedded_figures import steering
from pipeline.embedded_figures.figure import Figure
from pipeline.embedded_figures.scenes import Scene, read_scenes
from tests import loras
from tests.controls import write_controlnet


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All figures, quick, with a ControlNet and one LoRA of random weights."""
    folder = tmp_path_factory.mktemp("evaluation")
    backbone: Any = families.load(Path(embedded.BACKBONE), dtype=torch.float32, device="cpu")
    (folder / "loras").mkdir()
    made = loras.locon(backbone.network, backbone.encoders["text_encoder"])
    made.save(folder / "loras" / "moderate.safetensors")
    code = run(
        controlnet=write_controlnet(folder / "control"),
        loras=str(folder / "loras"),
        shards="embedded",
        target="embedded",
        out=str(folder / "out"),
        quick=True,
    )
    assert code == 0
    return folder / "out"


def test_every_number_is_written(result: Path) -> None:
    """With what a reader needs to judge it; no NaN, which JSON does not have."""
    found = json.loads((result / "figures.json").read_text())
    assert list(found["figures"]) == list(FIGURES) == list(found["seconds"])
    assert found["scale"] == "quick" and {"weights", "device", "threads", "libraries", "shards"} <= set(found)
    for name, group in found["figures"].items():
        assert group or name in ("quality", "samples")
        for one in group:
            assert one["what"] and one["n"] >= 1 and np.isfinite(one["mean"])
            assert (one["low"] is None) == (one["high"] is None)
            assert one["low"] is None or one["low"] <= one["mean"] <= one["high"]
            assert (one["goal"] is None) == (one["reached"] is None)
    loras_seen = [one["what"] for one in found["figures"]["lora"]]
    assert loras_seen == [
        "denoising loss with LoRA moderate, target domain",
        "denoising loss with LoRA moderate, elsewhere",
    ]
    assert any("moderate, t = 50, minus plain" in one["what"] for one in found["figures"]["lora-probe"])


def test_what_is_left_out_is_said(result: Path) -> None:
    """There is one LoRA only; whether two of the few scenes are blurry or sharp depends on the sample shards."""
    found = json.loads((result / "figures.json").read_text())
    told = (result / "figures.md").read_text()
    assert "lora: there is no overfitted LoRA" in found["left_out"]
    assert all(f"- Left out: {note}" in told for note in found["left_out"])


def test_the_page_has_every_goal_and_both_tables(result: Path) -> None:
    found, told = json.loads((result / "figures.json").read_text()), (result / "figures.md").read_text()
    goals = [one for group in found["figures"].values() for one in group if one["goal"]]
    rows = [line for line in told.splitlines() if line.endswith(("| yes |", "| no |"))]
    assert len(rows) == len(goals) > 10
    for row, one in zip(rows, goals, strict=True):
        assert row.startswith(f"| {one['what']} |") and f"| {one['goal']} |" in row
        assert row.endswith("| yes |" if one["reached"] else "| no |")
    assert "**Relative content shift (Eq. 1)**" in told and "**Linear probe, mIoU in percent**" in told
    tables = told.split("\n\n")
    for table in (part for part in tables if part.startswith("| ")):
        assert len({line.count("|") for line in table.splitlines()}) == 1, "every row has every column"


@pytest.mark.parametrize("name", ["samples", "reconstruction", "edges"])
def test_pictures(result: Path, name: str) -> None:
    with Image.open(result / f"{name}.png") as image:
        assert min(image.size) > 128 and len(np.unique(np.asarray(image.convert("L")))) > 50


def test_what_a_lora_was_trained_on_is_not_measured_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against figures of pictures that a LoRA has by heart."""
    first = read_scenes("embedded", 2)[0].id
    about = json.dumps({"images": [f"elsewhere/{first[0]}/{first[1]}"]})
    save_file({}, tmp_path / "moderate.safetensors", {"gatehouse": about})
    seen: list[Scene] = []

    def keep(given: Evaluation) -> list[Figure]:
        seen.extend(given.target)
        return []

    monkeypatch.setattr(evaluate_embedded, "FIGURES", {"lora": keep})
    run(loras=str(tmp_path), shards="embedded", target="embedded", out=str(tmp_path / "out"), quick=True)
    assert len(seen) == evaluate_embedded.QUICK.scenes and first not in [scene.id for scene in seen]


def test_the_shipped_loras_say_what_they_were_trained_on() -> None:
    assert len(steering.trained_on(steering.loras(None))) == 30


def test_only_some(tmp_path: Path) -> None:
    run(shards="embedded", out=str(tmp_path), only=["reconstruction"], quick=True)
    found = json.loads((tmp_path / "figures.json").read_text())
    assert list(found["figures"]) == ["reconstruction"] and found["left_out"] == []
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "figures.json",
        "figures.md",
        "reconstruction.png",
    ]


def test_what_is_wrong_is_said_before_anything_starts(tmp_path: Path) -> None:
    options: dict[str, Any] = {"shards": "embedded", "out": str(tmp_path / "out"), "quick": True}
    with pytest.raises(ValueError, match="'speed' is no figure; there are reconstruction, captions"):
        run(**options, only=["speed"])
    with pytest.raises(ValueError, match=r"has neither moderate\.safetensors nor overfitted"):
        run(**options, loras=str(tmp_path))
    with pytest.raises(ValueError, match=r"controlnet '.*nowhere': no such folder"):
        run(**options, controlnet=str(tmp_path / "nowhere"))
    assert not (tmp_path / "out").exists()


def test_too_few_scenes_for_the_probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate_embedded, "read_scenes", lambda *_: read_scenes("embedded", 5))
    with pytest.raises(ValueError, match="have 5 scenes; the probe trains on 5"):
        run(shards="embedded", out=str(tmp_path), only=["probe"], quick=True)
