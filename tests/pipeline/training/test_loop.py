from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.training.loop import CHECKPOINT, LOG, Settings, Trainer, step_generator
from pipeline.training.recorded import Batch

SETTINGS = Settings(steps=12, batch_size=4, learning_rate=0.05, warmup=3, checkpoint_every=5)


class Line:
    """Fits y = 2 x + 1, from points that the step's generator draws."""

    name = "line"
    made_of = "points"

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.layer = nn.Linear(1, 1)
        self.shown: list[tuple[int, float]] = []

    def parameters(self) -> Mapping[str, nn.Parameter]:
        return dict(self.layer.named_parameters())

    def draw(self, generator: torch.Generator) -> Batch:
        return {"x": torch.randn(8, 1, generator=generator)}

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        x = batch["x"]
        return (self.layer(x) - 2 * x - 1).square().mean(), {"mean": x.mean()}

    def show(self, folder: Path, step: int) -> None:
        self.shown.append((step, self.layer.bias.item()))


class Broken(Line):
    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return super().loss(batch)[0] * float("nan"), {}


def test_trains(tmp_path: Path) -> None:
    settings = Settings(steps=300, batch_size=4, learning_rate=0.1, ema=0.9, warmup=5, checkpoint_every=300)
    stage = Line()
    assert Trainer(stage, settings, tmp_path).run()
    assert stage.layer.weight.item() == pytest.approx(2, abs=0.02)
    assert stage.layer.bias.item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("stop_at", [1, 5, 11])
def test_a_run_that_went_on_is_an_undisturbed_one(tmp_path: Path, stop_at: int, optimizer: Any) -> None:
    settings = replace(SETTINGS, optimizer=optimizer)
    whole, parts = Line(), Line()
    Trainer(whole, settings, tmp_path / "whole").run()
    assert not Trainer(parts, settings, tmp_path / "parts").run(on_step=lambda step, _: step == stop_at)
    again = Line()
    assert Trainer(again, settings, tmp_path / "parts").run()
    assert torch.equal(again.layer.weight, whole.layer.weight)
    assert _checkpoint(tmp_path / "parts") == _checkpoint(tmp_path / "whole")
    assert _steps(tmp_path / "parts") == _steps(tmp_path / "whole") == list(range(1, 13))


def test_a_kill_loses_the_steps_since_the_checkpoint_only(tmp_path: Path) -> None:
    """The log may be ahead of the checkpoint, and its last line cut."""

    class Killed(Exception): ...

    def kill(step: int, _: dict[str, float]) -> bool:
        if step == 8:
            raise Killed
        return False

    with pytest.raises(Killed):
        Trainer(Line(), SETTINGS, tmp_path).run(on_step=kill)
    with (tmp_path / LOG).open("a") as log:
        log.write('{"step": 9, "sec')
    trainer = Trainer(Line(), SETTINGS, tmp_path)
    assert trainer.step == 5
    trainer.run()
    assert _steps(tmp_path) == list(range(1, 13))


def test_a_kill_before_the_first_checkpoint(tmp_path: Path) -> None:
    """Guards against steps that stand in the log twice, and a cut line that swallows the next one."""
    (tmp_path / LOG).write_text('{"step": 1, "seconds": 0.1, "loss": 2.0}\n{"step": 2, "sec')
    Trainer(Line(), SETTINGS, tmp_path).run()
    assert _steps(tmp_path) == list(range(1, 13))


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    Trainer(Line(), SETTINGS, tmp_path).run()
    before = _checkpoint(tmp_path)
    assert Trainer(Line(), SETTINGS, tmp_path).run()
    assert _checkpoint(tmp_path) == before


def test_stops_in_time(tmp_path: Path) -> None:
    trainer = Trainer(Line(), SETTINGS, tmp_path)
    assert not trainer.run(stop_after_s=0)
    assert trainer.step == 1


def test_the_average_is_the_networks_only_while_asked_for(tmp_path: Path) -> None:
    stage = Line()
    trainer = Trainer(stage, SETTINGS, tmp_path)
    trainer.run()
    trained = stage.layer.bias.item()
    with trainer.averaged():
        averaged = stage.layer.bias.item()
    assert stage.layer.bias.item() == trained != averaged
    assert stage.shown[-1] == (12, averaged)
    assert [step for step, _ in stage.shown] == [5, 10, 12]


def test_the_average_is_of_all_steps(tmp_path: Path) -> None:
    """An exponential mean with a warm-up, computed here from the weights of every step."""
    settings = Settings(steps=6, batch_size=4, learning_rate=0.05, ema=0.8, checkpoint_every=6)
    stage = Line()
    trainer = Trainer(stage, settings, tmp_path)
    expected = stage.layer.bias.item()

    def follow(step: int, _: dict[str, float]) -> bool:
        nonlocal expected
        keep = min(0.8, step / (step + 10))
        expected = keep * expected + (1 - keep) * stage.layer.bias.item()
        return False

    trainer.run(on_step=follow)
    with trainer.averaged():
        assert stage.layer.bias.item() == pytest.approx(expected, rel=1e-5)


def test_without_an_average_the_last_weights_are_the_result(tmp_path: Path) -> None:
    settings = Settings(steps=2, batch_size=4, learning_rate=0.05, ema=None)
    stage = Line()
    trainer = Trainer(stage, settings, tmp_path)
    trainer.run()
    last = stage.layer.bias.item()
    with trainer.averaged():
        assert stage.layer.bias.item() == last


def test_rate() -> None:
    settings = Settings(steps=100, batch_size=1, learning_rate=1.0, warmup=10, decay=0.5)
    assert [settings.rate(step) for step in (0, 4, 9, 49)] == pytest.approx([0.1, 0.5, 1, 1])
    assert settings.rate(75) == pytest.approx(0.5)
    assert settings.rate(99) == pytest.approx(0.02)


def test_other_settings_are_refused(tmp_path: Path) -> None:
    Trainer(Line(), SETTINGS, tmp_path).run(stop_after_s=0)
    other = Settings(steps=12, batch_size=4, learning_rate=0.01, warmup=3)
    with pytest.raises(
        ValueError, match=r"made with learning_rate 0\.05, the run asks for 0\.01.*move it away"
    ):
        Trainer(Line(), other, tmp_path)


def test_another_network_is_refused(tmp_path: Path) -> None:
    Trainer(Line(), SETTINGS, tmp_path).run(stop_after_s=0)
    stage = Line()
    stage.layer = nn.Linear(1, 1, bias=False)
    with pytest.raises(ValueError, match=r"holds 2 parameters, this network has 1; 'bias' is only in one"):
        Trainer(stage, SETTINGS, tmp_path)


def test_a_tensor_of_another_shape_is_refused(tmp_path: Path) -> None:
    """Guards against a copy that spreads one row over three."""
    Trainer(Line(), SETTINGS, tmp_path).run(stop_after_s=0)
    stage = Line()
    stage.layer = nn.Linear(1, 3)
    with pytest.raises(ValueError, match=r"'\w+\.\w+' has the shape \[1.*, this network's has \[3"):
        Trainer(stage, SETTINGS, tmp_path)


def test_another_origin_is_refused(tmp_path: Path) -> None:
    Trainer(Line(), SETTINGS, tmp_path).run(stop_after_s=0)
    stage = Line()
    stage.made_of = "other points"
    with pytest.raises(ValueError, match=r"made with made_of points, the run asks for other points"):
        Trainer(stage, SETTINGS, tmp_path)


@pytest.mark.parametrize("content", [b"", b"no tensors"])
def test_what_is_no_checkpoint(tmp_path: Path, content: bytes) -> None:
    (tmp_path / CHECKPOINT).write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot be read as a checkpoint .*move it away"):
        Trainer(Line(), SETTINGS, tmp_path)


def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"line: the loss of step 0 is nan; begin anew"):
        Trainer(Broken(), SETTINGS, tmp_path).run()


def test_a_gradient_that_is_no_number_reaches_no_weight(tmp_path: Path) -> None:
    """A finite loss may have one: that of a square root at 0."""
    stage = Line()

    def loss(batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return (stage.layer.bias * 0).sqrt().sum(), {}

    stage.loss = loss  # type: ignore[method-assign]
    with pytest.raises(FloatingPointError, match=r"line: the gradient's norm of step 0 is nan"):
        Trainer(stage, SETTINGS, tmp_path).run()
    assert stage.layer.bias.isfinite().all()


def test_steps_have_randomness_of_their_own() -> None:
    draws = {
        float(torch.randn((), generator=step_generator(seed, step))) for seed in (0, 1) for step in range(50)
    }
    assert len(draws) == 100


def _checkpoint(folder: Path) -> dict[str, list[float]]:
    from safetensors.torch import load_file

    return {name: value.flatten().tolist() for name, value in load_file(folder / CHECKPOINT).items()}


def _steps(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / LOG).read_text().splitlines()]


def test_gradients_are_averaged_before_they_are_measured(tmp_path: Path) -> None:
    """As several processes bring them together: each clips by the norm of what all have found."""
    seen: list[list[float]] = []

    def average(parameters: Iterable[nn.Parameter]) -> None:
        gradients = [one.grad for one in parameters if one.grad is not None]
        seen.append([gradient.item() for gradient in gradients])
        for gradient in gradients:
            gradient.fill_(0.3)

    logged: list[float] = []
    settings = replace(SETTINGS, steps=2)
    trainer = Trainer(Line(), settings, tmp_path, reduce=average)

    def keep(_: int, found: dict[str, float]) -> bool:
        logged.append(found["gradient"])
        return False

    trainer.run(on_step=keep)
    assert len(seen) == 2 and all(any(pair) for pair in seen)
    assert logged == pytest.approx([0.3 * 2**0.5] * 2)


def test_of_several_processes_one_writes(tmp_path: Path) -> None:
    """The others go on from what it wrote, and touch nothing."""
    writer, reader = Line(), Line()
    Trainer(writer, SETTINGS, tmp_path).run(on_step=lambda step, _: step == 6)
    with (tmp_path / LOG).open("a") as file:
        file.write('{"step": 7}\n')
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    trainer = Trainer(reader, SETTINGS, tmp_path, writes=False)
    assert trainer.step == 6 and trainer.run()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert not reader.shown
    Trainer(writer, SETTINGS, tmp_path).run()
    assert torch.equal(reader.layer.weight, writer.layer.weight)
