"""What each technique costs: a group with it beside the same group without, through the job's own engine.

The weights that techniques need are random ones made here, of the shapes that trained ones have: that changes values,
not time.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch

from jobs.benchmarks.figures import Figure, Line, Measurement, in_turns, rate
from jobs.benchmarks.workbench import SHARD_IMAGES, Workbench, engine_of, loaded
from pipeline import embedded
from pipeline.batch import Batch
from pipeline.plan import make_plan

_TAPS = "legacy"
_SELF_MAP = "up-level2-repeat1-vit-block0-self-map"
_BATCHES = 4


def measure(bench: Workbench) -> Measurement:
    """Images a second of one group, in turns with the plain group; the ratio is the speed that is left."""
    plain = {"name": "g", "prompt": "a photo", "t": 50, "taps": _TAPS}
    engines = {
        name: _Timed(bench, plain | fields) for name, fields in _groups(_controlnet(bench.folder)).items()
    }
    base = engines.pop("plain")
    found = Measurement(facts={"network_calls": {name: one.calls for name, one in engines.items()}})
    for name, timed in engines.items():
        values = in_turns(bench.scale.repeats, ours=timed.rate, other=base.rate)
        ours, other = Figure(name, values["ours"]), Figure("plain pass", values["other"])
        found.lines.append(Line(name, "images/s", "higher", ours, other))
    return found


def _groups(controlnet: str) -> dict[str, dict[str, Any]]:
    """What differs from the plain group."""
    control = {"type": "controlnet", "source": controlnet}
    return {
        "plain": {},
        "caption of its own": {"prompt": "{caption}"},
        "two seeds averaged": {"techniques": [{"type": "average", "seeds": 2}]},
        "guidance": {"techniques": [{"type": "guidance", "scale": 3.0}]},
        "controlnet": {"techniques": [control]},
        "two controlnets": {"techniques": [control, control | {"low": 50}]},
        "controlnet, denoised from t = 60": {"techniques": [control, {"type": "denoise", "start": 60}]},
        "inversion in 10 steps": {"techniques": [{"type": "inversion", "steps": 10}]},
        "attn besides": {"taps": [_TAPS, "attn"]},
        "a self-map besides": {"taps": [_TAPS, _SELF_MAP]},
        "a self-map, pooled, besides": {"taps": [_TAPS, f"{_SELF_MAP}-pooled2"]},
    }


class _Timed:
    """An engine of one group, and batches for it."""

    def __init__(self, bench: Workbench, group: dict[str, Any]) -> None:
        plan = make_plan(bench.spec(SHARD_IMAGES, [group]))
        self._engine = engine_of(plan)
        self._batches: list[Batch] = [item.batch for item in loaded(plan)[:_BATCHES]]
        self._engine.run(self._batches[0])  # warm up
        (recipe,) = self._engine.recipes
        self.calls = recipe.network_calls(self._engine.backbone)

    def rate(self) -> float:
        images = sum(len(batch.ids) for batch in self._batches)
        return rate(images, self._run)()

    def _run(self) -> None:
        for batch in self._batches:
            self._engine.run(batch)


def _controlnet(folder: Path) -> str:
    """One that fits the embedded backbone."""
    unet: Any = diffusers.UNet2DConditionModel.from_pretrained(embedded.BACKBONE, subfolder="unet")
    torch.manual_seed(0)
    made: Any = diffusers.ControlNetModel.from_unet(unet)
    made.save_pretrained(folder / "controlnet")
    return str(folder / "controlnet")
