"""Clean latents to noisy ones and back, as a checkpoint's scheduler has it: timesteps, noise, steps up and down.

`Diffusion` serves schedulers with `alphas_cumprod`, `Flow` those of flow matching, where x_t = (1 - s) x_0 + s noise
and the network sees timestep 1000 s. Both have the same methods. Latents stay float32 here.
"""

from __future__ import annotations

import copy
import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor

TRAIN_TIMESTEPS = 1000
_RANDOM = {
    "DDPMParallelScheduler",
    "DDPMScheduler",
    "EulerAncestralDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "LCMScheduler",
    "SASolverScheduler",
    "TCDScheduler",
}
"""Schedulers whose steps draw noise."""


class Denoising:
    """Steps from a stronger noise down to a group's own; the last timestep is where features are taken.

    Holds the scheduler's history, so one object serves one batch once.
    """

    def __init__(self, scheduler: Any, timesteps: list[Tensor]) -> None:
        self._scheduler, self._timesteps = scheduler, timesteps

    @property
    def timesteps(self) -> list[int]:
        """What the network sees, strongest noise first."""
        return [int(time) for time in self._timesteps]

    def scale(self, latents: Tensor, place: int) -> Tensor:
        """What the network takes at the `place`-th step."""
        scaled: Tensor = self._scheduler.scale_model_input(latents, self._timesteps[place])
        return scaled

    def step(self, output: Tensor, place: int, latents: Tensor) -> Tensor:
        """Latents after the `place`-th step, from the network's output there."""
        moved = self._scheduler.step(output.float(), self._timesteps[place], latents, return_dict=False)
        return moved[0]


class Schedule(ABC):
    """A checkpoint's own scheduler, set to every training timestep."""

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler

    @abstractmethod
    def timestep(self, t: int) -> int:
        """The timestep that the network sees at noise strength t / 1000."""

    @abstractmethod
    def check(self, timestep: int) -> None:
        """Raise ValueError for a timestep that this schedule has not."""

    @abstractmethod
    def add_noise(self, latents: Tensor, noise: Tensor, timestep: int) -> Tensor:
        """x_t of x_0 [B, c, h, w] at a timestep."""

    def scale(self, noisy: Tensor, timestep: int) -> Tensor:
        """x_t as the network takes it."""
        return noisy

    @abstractmethod
    def denoising(self, start: int, t: int) -> Denoising:
        """The scheduler's own steps from noise strength start / 1000 down to t / 1000.

        Entries from 1000 - start of its timesteps to the first that is no more than t: with PNDM, which has one
        entry twice, start = 60 and t = 50 give 61, 60 ... 50.
        """

    @abstractmethod
    def invert(self, latents: Tensor, output: Tensor, timestep: int, target: int) -> Tensor:
        """One step of DDIM inversion (Song et al. 2021, eq. 13 reversed): x at `timestep` to x at `target`, both
        clean at -1, from the network's output for x."""

    def check_inversion(self) -> None:  # noqa: B027 - most have nothing to refuse
        """Raise ValueError where `invert` cannot work."""


class Diffusion(Schedule):
    """DDPM's forward process, by the cumulative alphas of the scheduler's config."""

    def __init__(self, scheduler: Any) -> None:
        super().__init__(scheduler)
        self._at: dict[int, Any] = {}

    def timestep(self, t: int) -> int:
        return int(self._scheduler.timesteps[TRAIN_TIMESTEPS - t])

    def check(self, timestep: int) -> None:
        times = self._scheduler.timesteps
        # Those with a table of sigmas have none for other timesteps, and some take the last one then.
        if hasattr(self._scheduler, "sigmas") and timestep not in times:
            raise ValueError(
                f"timestep {timestep} is not in the schedule of {type(self._scheduler).__name__}, which has"
                f" {int(times.min())} to {int(times.max())}"
            )

    def add_noise(self, latents: Tensor, noise: Tensor, timestep: int) -> Tensor:
        times = torch.full((len(latents),), timestep, dtype=torch.long, device=latents.device)
        noisy: Tensor = self._placed(timestep).add_noise(latents, noise.to(latents.device), times)
        return noisy

    def scale(self, noisy: Tensor, timestep: int) -> Tensor:
        scaled: Tensor = self._placed(timestep).scale_model_input(noisy, torch.tensor(timestep))
        return scaled

    def denoising(self, start: int, t: int) -> Denoising:
        times = self._scheduler.timesteps[TRAIN_TIMESTEPS - start :]
        last = next(place for place, time in enumerate(times) if time <= t)
        steps, kind = list(times[: last + 1]), type(self._scheduler).__name__
        twice = next((int(one) for one, then in itertools.pairwise(steps) if one == then), None)
        if twice is not None and kind != "PNDMScheduler":  # which means its repetition
            raise ValueError(
                f"denoising from {start} to {t}: {kind} has timestep {twice} twice, and a step of no length divides by"
                " zero; stay on one side of it"
            )
        return Denoising(copy.deepcopy(self._scheduler), steps)

    def invert(self, latents: Tensor, output: Tensor, timestep: int, target: int) -> Tensor:
        now, then = self._alpha(timestep), self._alpha(target)
        kind = self._scheduler.config.prediction_type
        if kind == "epsilon":
            noise = output.float()
        elif kind == "v_prediction":
            noise = now**0.5 * output.float() + (1 - now) ** 0.5 * latents
        else:
            raise AssertionError(kind)  # refused by check_inversion
        clean = (latents - (1 - now) ** 0.5 * noise) / now**0.5
        return then**0.5 * clean + (1 - then) ** 0.5 * noise

    def check_inversion(self) -> None:
        if (kind := self._scheduler.config.prediction_type) not in ("epsilon", "v_prediction"):
            raise ValueError(
                f"inversion needs a network that predicts epsilon or v; this one predicts {kind}"
            )

    def _alpha(self, timestep: int) -> float:
        return 1.0 if timestep < 0 else float(self._scheduler.alphas_cumprod[timestep])

    def _placed(self, timestep: int) -> Any:
        """Schedulers that scale their input remember where in the schedule they are: each timestep has its own."""
        if timestep not in self._at:
            self._at[timestep] = copy.deepcopy(self._scheduler)
        return self._at[timestep]


class Flow(Schedule):
    """Flow matching: straight lines between image and noise. Shifts, which only space a sampler's steps, play no
    role: t and timestep are the same number, 1000 times the share of noise."""

    def timestep(self, t: int) -> int:
        return t

    def check(self, timestep: int) -> None:
        assert 0 <= timestep < TRAIN_TIMESTEPS, timestep  # the spec allows no other

    def add_noise(self, latents: Tensor, noise: Tensor, timestep: int) -> Tensor:
        share = timestep / TRAIN_TIMESTEPS
        return (1 - share) * latents + share * noise.to(latents.device)

    def denoising(self, start: int, t: int) -> Denoising:
        return Denoising(_Euler(), [torch.tensor(time) for time in range(start, t - 1, -1)])

    def invert(self, latents: Tensor, output: Tensor, timestep: int, target: int) -> Tensor:
        return latents + (target - max(timestep, 0)) / TRAIN_TIMESTEPS * output.float()


class _Euler:
    """The ODE's Euler steps of one timestep each, in a scheduler's words."""

    def scale_model_input(self, latents: Tensor, timestep: Tensor) -> Tensor:
        return latents

    def step(self, output: Tensor, timestep: Tensor, latents: Tensor, return_dict: bool) -> tuple[Tensor]:
        return (latents - output / TRAIN_TIMESTEPS,)


def load_schedule(folder: Path, config: dict[str, Any]) -> Schedule:
    """The schedule of a diffusers folder, `config` being its scheduler's.

    A scheduler that skips timesteps, or whose steps draw noise of their own, gives way to DDIM with the same betas:
    what the network sees is the same, and a row may not depend on others.

    Raises:
        ValueError: a class that is no scheduler of diffusers, or one that is not of diffusion over timesteps.
    """
    name = config.get("_class_name")
    found = getattr(diffusers, str(name), None)
    if not (isinstance(found, type) and issubclass(found, diffusers.SchedulerMixin)):
        raise ValueError(
            f"scheduler_config.json names the class {name!r}, which is no scheduler of diffusers"
        )
    kind: Any = found
    scheduler = kind.from_pretrained(folder, subfolder="scheduler", local_files_only=True)
    if "FlowMatch" in kind.__name__ or config.get("prediction_type") == "flow_prediction":
        return Flow(scheduler)
    if not hasattr(scheduler, "alphas_cumprod"):
        raise ValueError(
            f"scheduler_config.json names {name}, whose noise is not a function of training's timesteps; supported are"
            " schedulers with betas, such as DDIMScheduler, and those of flow matching"
        )
    if not _steps_through(scheduler):
        # Without the list of its defaults, or DDIM takes its own instead, such as clipping to [-1, 1].
        own = {name: value for name, value in scheduler.config.items() if name != "_use_default_values"}
        options = {"clip_sample": False, **own}
        scheduler = diffusers.DDIMScheduler.from_config(options)
    scheduler.set_timesteps(TRAIN_TIMESTEPS)
    return Diffusion(scheduler)


def _steps_through(scheduler: Any) -> bool:
    """Whether a scheduler takes every training timestep, one after the other, and always in the same way."""
    kind = type(scheduler).__name__
    if kind in _RANDOM or "sde" in scheduler.config.get("algorithm_type", ""):
        return False
    try:
        scheduler.set_timesteps(TRAIN_TIMESTEPS)
    except ValueError:  # of few steps only
        return False
    times = scheduler.timesteps.tolist()
    # Some lists have a timestep twice, some end at 1. With "leading" spacing, some consist of one timestep alone.
    whole = range(int(times[0]), int(times[-1]) - 1, -1)
    return sorted(set(times), reverse=True) == list(whole) and 0 <= len(times) - len(whole) <= 1 < len(whole)


def inversion_timesteps(timestep: int, steps: int) -> Iterator[tuple[int, int]]:
    """(from, to) of `steps` evenly spaced steps from clean latents (-1) up to a timestep; fewer where they meet."""
    stops = sorted({round(timestep * place / steps) for place in range(1, steps + 1)})
    yield from zip([-1, *stops[:-1]], stops, strict=True)
