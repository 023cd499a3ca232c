from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pipeline.training.loop import Settings, Trainer
from pipeline.training.recorded import Batch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")


class Curve:
    """Fits a sine, from batches of two sizes in turn."""

    name = "curve"
    made_of = "points"

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 1)).cuda()

    def parameters(self) -> Mapping[str, nn.Parameter]:
        return dict(self.network.named_parameters())

    def draw(self, generator: torch.Generator) -> Batch:
        size = 8 if torch.rand((), generator=generator) < 0.5 else 16
        return {"x": torch.randn(size, 1, generator=generator).cuda()}

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        error = self.network(batch["x"]) - batch["x"].sin()
        return error.square().mean(), {"largest": error.detach().abs().max()}

    def show(self, folder: Path, step: int) -> None: ...


def test_a_replayed_step_is_the_step(tmp_path: Path) -> None:
    """With rates that change, two shapes of batch, an average and a resume in between."""
    settings = Settings(steps=40, batch_size=8, optimizer="muon", learning_rate=0.02, warmup=5, ema=0.9)
    losses: dict[bool, list[float]] = {False: [], True: []}
    for recorded in losses:

        def follow(step: int, logged: dict[str, float], kept: list[float] = losses[recorded]) -> bool:
            kept.append(logged["loss"])
            return step == 25

        for _ in range(2):
            trainer = Trainer(Curve(), settings, tmp_path / str(recorded), recorded=recorded)
            trainer.run(on_step=follow)
    assert len(losses[True]) == 40
    assert losses[True] == pytest.approx(losses[False], rel=1e-3)
