"""One training loop for every network, resumable at any step.

What is trained, and on what loss, is a `Stage`. All that is random in step n comes from a generator seeded by
(seed, n), so a run that was killed and went on ends where an undisturbed one ends: to the same bytes on a CPU with the
same number of threads and the same libraries.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from fsspec.implementations.local import LocalFileSystem
from torch import Tensor, nn

from pipeline import storage
from pipeline.training.checkpoints import read_checkpoint, write_checkpoint
from pipeline.training.muon import Muon
from pipeline.training.recorded import Batch, RecordedStep

LOG = "log.jsonl"
CHECKPOINT = "checkpoint.safetensors"
_YOUNG_STEPS = 10
"""How fast the average of weights forgets the first ones."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a stage is trained; part of a checkpoint's identity."""

    steps: int
    batch_size: int
    optimizer: Literal["adamw", "muon"] = "adamw"
    """AdamW is for what begins near its goal, as a LoRA does; Muon for networks that begin at random."""
    learning_rate: float
    """The highest; reached after `warmup`, falls to 0 over the last `decay` of the steps."""
    warmup: int = 100
    """Steps."""
    decay: float = 0.5
    """Share of the steps."""
    weight_decay: float = 1e-2
    clip: float = 1.0
    """Largest norm of the gradient."""
    ema: float | None = 0.999
    """What the average of weights keeps in one step; None: the last weights are the result."""
    seed: int = 0
    checkpoint_every: int = 500
    """Steps."""

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        left = (self.steps - step) / self.steps
        rising = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        falling = min(1.0, left / self.decay) if self.decay else 1.0
        return self.learning_rate * rising * falling


class Stage(Protocol):
    """A network in training."""

    name: str
    made_of: str
    """Hash of all else that its weights depend on: images, captions, other networks, its own shape."""

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """What is trained, by name; float32."""

    def draw(self, generator: torch.Generator) -> Batch:
        """What a step computes on, where the network is; all that is random in it comes from the generator."""

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch, and what else is worth logging; scalars."""

    def show(self, folder: Path, step: int) -> None:
        """Write sample pictures; called with averaged weights where a checkpoint is due."""


class Trainer:
    """Trains one stage in one folder.

    Args:
        stage: what is trained.
        settings: how.
        folder: for checkpoint, log and pictures; a checkpoint there is gone on from.
        recorded: replay steps as CUDA graphs, which Muon and the stage's `loss` must admit; see `recorded`.
        reduce: brings gradients to their mean over several processes that train together.
        writes: whether this process keeps checkpoint, log and pictures; of several, one does.

    Raises:
        ValueError: the folder's checkpoint was made with other settings, or of other parameters.
    """

    def __init__(
        self,
        stage: Stage,
        settings: Settings,
        folder: Path,
        *,
        recorded: bool = False,
        reduce: Callable[[Iterable[nn.Parameter]], None] | None = None,
        writes: bool = True,
    ) -> None:
        self.stage, self.settings, self.folder = stage, settings, folder
        self._reduce, self._writes = reduce, writes
        self.parameters = dict(stage.parameters())
        self.step = 0
        self._seconds = 0.0
        self._optimizer = _optimizer(settings, self.parameters)
        self._step = RecordedStep(self._forward, self._optimizer.step) if recorded else self._plain_step
        keeps_average = settings.ema is not None
        self._average = (
            {name: value.detach().clone() for name, value in self.parameters.items()} if keeps_average else {}
        )
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / CHECKPOINT).exists():
            self._resume()
        if writes:
            cut_log(folder / LOG, self.step)

    @property
    def seconds(self) -> float:
        """Spent on all steps so far, those of earlier runs too."""
        return self._seconds

    def run(
        self,
        *,
        stop_after_s: float | None = None,
        on_step: Callable[[int, dict[str, float]], bool] | None = None,
    ) -> bool:
        """Train to the end, or until told to stop; whether the end was reached. A checkpoint is left either way.

        Args:
            stop_after_s: stop when so many seconds have passed.
            on_step: called with the steps done and what was logged; stops the run where it returns True.
        """
        started, before = time.monotonic(), self._seconds
        while self.step < self.settings.steps:
            logged = self._one_step()
            self._seconds = before + time.monotonic() - started
            if self._writes:
                self._log(logged)
            stop = stop_after_s is not None and time.monotonic() - started > stop_after_s
            stop |= on_step is not None and on_step(self.step, logged)
            due = self.step == self.settings.steps or self.step % self.settings.checkpoint_every == 0
            if self._writes and (stop or due):
                self._checkpoint()
            if self._writes and due:
                with self.averaged(), torch.no_grad():
                    self.stage.show(self.folder, self.step)
            if stop:
                break
        return self.step >= self.settings.steps

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The averaged weights are the network's while the context is open."""
        if not self._average:
            yield
            return
        trained = {name: value.data for name, value in self.parameters.items()}
        try:
            for name, value in self.parameters.items():
                value.data = self._average[name]
            yield
        finally:
            for name, value in self.parameters.items():
                value.data = trained[name]

    def _one_step(self) -> dict[str, float]:
        rate = self.settings.rate(self.step)
        for group in self._optimizer.param_groups:
            group["lr"].fill_(rate)
        found, update = self._step(self.stage.draw(step_generator(self.settings.seed, self.step)))
        logged = dict(zip(found, torch.stack(list(found.values())).tolist(), strict=True))
        self._check_finite("loss", logged["loss"])
        self._check_finite("gradient's norm", logged["gradient"])
        update()
        self.step += 1
        if self._average and self.settings.ema is not None:
            keep = min(self.settings.ema, self.step / (self.step + _YOUNG_STEPS))
            weights = [weight.data for weight in self.parameters.values()]
            torch._foreach_lerp_(list(self._average.values()), weights, 1 - keep)
        return logged | {"rate": rate}

    def _plain_step(self, batch: Batch) -> tuple[dict[str, Tensor], Callable[[], Any]]:
        return self._forward(batch), self._optimizer.step

    def _forward(self, batch: Batch) -> dict[str, Tensor]:
        """Gradients of a batch's loss, clipped; what is logged."""
        self._optimizer.zero_grad()
        loss, logged = self.stage.loss(batch)
        loss.backward()
        if self._reduce is not None:
            self._reduce(self.parameters.values())
        norm = nn.utils.clip_grad_norm_(list(self.parameters.values()), self.settings.clip)
        return {"loss": loss.detach(), "gradient": norm, **logged}

    def _check_finite(self, what: str, value: float) -> None:
        """Before it gets into weights, and so into checkpoint and average."""
        if not math.isfinite(value):
            raise FloatingPointError(
                f"{self.stage.name}: the {what} of step {self.step} is {value}; begin anew in another folder"
                f" with a lower learning rate than {self.settings.learning_rate}"
            )

    def _log(self, logged: Mapping[str, float]) -> None:
        line = {"step": self.step, "seconds": round(self._seconds, 2)}
        line |= {key: float(f"{value:.5g}") for key, value in logged.items()}
        with (self.folder / LOG).open("a") as file:
            file.write(json.dumps(line) + "\n")

    def _checkpoint(self) -> None:
        write_checkpoint(
            self.folder / CHECKPOINT,
            parameters=self.parameters,
            average=self._average,
            optimizer=self._optimizer,
            facts={"identity": self._identity(), "step": self.step, "seconds": self._seconds},
        )

    def _resume(self) -> None:
        facts = read_checkpoint(
            self.folder / CHECKPOINT,
            parameters=self.parameters,
            average=self._average,
            optimizer=self._optimizer,
            identity=self._identity(),
        )
        self.step, self._seconds = int(facts["step"]), float(facts["seconds"])

    def _identity(self) -> dict[str, Any]:
        settings = {key: value for key, value in asdict(self.settings).items() if key != "checkpoint_every"}
        return {"stage": self.stage.name, "made_of": self.stage.made_of, **settings}


def _optimizer(settings: Settings, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
    decay = settings.weight_decay
    # A tensor, so that steps which are recorded read what it is, not what it was.
    rate = torch.tensor(settings.learning_rate, device=next(iter(parameters.values())).device)
    if settings.optimizer == "muon":
        return Muon(parameters, rate, decay)
    return torch.optim.AdamW(
        list(parameters.values()), lr=rate, betas=(0.9, 0.99), weight_decay=decay, fused=True
    )


def step_generator(seed: int, step: int) -> torch.Generator:
    """All the randomness of one step."""
    digest = hashlib.sha256(f"{seed} {step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def cut_log(log: Path, step: int) -> None:
    """Drop a log's lines of steps that no checkpoint holds, so that they are there once when they are done again."""
    if not log.exists():
        return
    kept = [line for line in log.read_text().splitlines() if _step_of(line) <= step]
    text = "".join(f"{line}\n" for line in kept)
    storage.put(LocalFileSystem(), str(log.absolute()), text.encode())


def _step_of(line: str) -> int:
    """Of a line of the log; a line that was cut off by a crash belongs to no checkpoint."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return 1 << 62
