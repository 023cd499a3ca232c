"""What the network starts from: noised latents, clean ones, inverted ones, or ones that were denoised for a while.

Each start gives the network's literal input at the group's timestep. Inversion and denoising call the network on the
way; their estimates are the group's own, with all its techniques.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from pipeline.noising import Schedule, inversion_timesteps
from schemas import techniques as specs
from schemas.groups import Group

Estimate = Callable[[Tensor, int], Tensor]
"""The group's estimate of noise (or v, or flow), [B, c, h, w], for a literal input at a timestep."""
Draw = Callable[[], Tensor]
"""Standard normal numbers of the batch's samples, [B, c, h, w]."""


class Noise:
    """Random noise, as in the paper: x_t of the forward process."""

    def __init__(self, group: Group) -> None:
        self._group = group

    def timestep(self, schedule: Schedule) -> int:
        """The timestep that the network sees in the pass that is recorded.

        Raises:
            ValueError: one that the schedule has not.
        """
        (time,) = self._group.times
        if self._group.t is not None:
            return schedule.timestep(time)
        schedule.check(time)
        return time

    def calls(self, schedule: Schedule) -> int:
        """Calls of the network before that pass."""
        return 0

    def begin(self, schedule: Schedule, latents: Tensor, draw: Draw, estimate: Estimate) -> Tensor:
        """The network's literal input there, float32 [B, c, h, w], from clean latents."""
        timestep = self.timestep(schedule)
        return schedule.scale(schedule.add_noise(latents, draw(), timestep), timestep)


class NoNoise(Noise):
    """Clean latents, whatever the timestep says."""

    def timestep(self, schedule: Schedule) -> int:
        (time,) = self._group.times
        # No noise is taken from the schedule, so 0 is allowed where that begins at 1.
        return time if self._group.t is None else schedule.timestep(time)

    def begin(self, schedule: Schedule, latents: Tensor, draw: Draw, estimate: Estimate) -> Tensor:
        return latents


class Inversion(Noise):
    """DDIM inversion: the network's own estimates carry the clean latents up, step by step."""

    def __init__(self, group: Group, spec: specs.Inversion) -> None:
        super().__init__(group)
        self._steps = spec.steps

    def timestep(self, schedule: Schedule) -> int:
        schedule.check_inversion()
        return super().timestep(schedule)

    def calls(self, schedule: Schedule) -> int:
        return len(list(inversion_timesteps(self.timestep(schedule), self._steps)))

    def begin(self, schedule: Schedule, latents: Tensor, draw: Draw, estimate: Estimate) -> Tensor:
        for now, then in inversion_timesteps(self.timestep(schedule), self._steps):
            latents = schedule.invert(latents, estimate(latents, max(now, 0)), now, then)
        return latents


class Denoise(Noise):
    """Noise at a stronger t, then the scheduler's own steps down to the group's."""

    def __init__(self, group: Group, spec: specs.Denoise) -> None:
        super().__init__(group)
        self._start = spec.start

    def timestep(self, schedule: Schedule) -> int:
        timesteps = schedule.denoising(self._start, *self._group.times).timesteps
        if len(timesteps) == 1:
            raise ValueError(
                f"group {self._group.name!r}: denoising from {self._start} makes no step with this scheduler, whose"
                f" timestep there is {timesteps[0]} already; start from a stronger noise"
            )
        return timesteps[-1]

    def calls(self, schedule: Schedule) -> int:
        return len(schedule.denoising(self._start, *self._group.times).timesteps) - 1

    def begin(self, schedule: Schedule, latents: Tensor, draw: Draw, estimate: Estimate) -> Tensor:
        steps = schedule.denoising(self._start, *self._group.times)
        noisy = schedule.add_noise(latents, draw(), steps.timesteps[0])
        for place, time in enumerate(steps.timesteps[:-1]):
            noisy = steps.step(estimate(steps.scale(noisy, place), time), place, noisy)
        return steps.scale(noisy, len(steps.timesteps) - 1)


def start_of(group: Group) -> Noise:
    """What a group's techniques say it starts from; random noise if nothing."""
    for technique in group.techniques:
        if isinstance(technique, specs.Denoise):
            return Denoise(group, technique)
        if isinstance(technique, specs.Inversion):
            return Inversion(group, technique)
        if isinstance(technique, specs.NoNoise):
            return NoNoise(group)
    return Noise(group)
