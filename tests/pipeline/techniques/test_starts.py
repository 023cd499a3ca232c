"""What the network starts from: against the schedulers' own words, on stock schedulers."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from pipeline.noising import Diffusion, Flow, Schedule
from pipeline.techniques.starts import Denoise, Inversion, Noise, NoNoise, start_of
from schemas.groups import Group

LATENTS = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
NOISE = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))


def schedule(kind: Any = diffusers.PNDMScheduler, **config: Any) -> Schedule:
    """Stable Diffusion's, set to every training timestep."""
    common = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    scheduler = kind(**common, **config)
    scheduler.set_timesteps(1000)
    return Diffusion(scheduler)


PNDM = {"skip_prk_steps": True, "steps_offset": 1}


def group(*techniques: dict[str, Any], **fields: Any) -> Group:
    time = {} if "timestep" in fields else {"t": 50}
    return Group.model_validate(
        {"name": "g", "taps": "legacy", "techniques": list(techniques), **time, **fields}
    )


def forbidden(noisy: Tensor, timestep: int) -> Tensor:
    raise AssertionError("the network was called")


def test_noise_is_the_forward_process() -> None:
    made = schedule(**PNDM)
    start = start_of(group())
    assert type(start) is Noise and start.timestep(made) == 51 and start.calls(made) == 0
    found = start.begin(made, LATENTS, lambda: NOISE, forbidden)
    alphas = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)
    expected = alphas[51] ** 0.5 * LATENTS + (1 - alphas[51]) ** 0.5 * NOISE
    assert torch.allclose(found, expected, atol=1e-6)


def test_sigmas_are_scaled_away() -> None:
    """Euler's x_t is x_0 + sigma noise, and the network sees x_t / sqrt(sigma^2 + 1): the same as with alphas."""
    made = schedule(diffusers.EulerDiscreteScheduler, timestep_spacing="leading")
    start = start_of(group(timestep=50))
    found = start.begin(made, LATENTS, lambda: NOISE, forbidden)
    plain = start_of(group(timestep=50)).begin(schedule(**PNDM), LATENTS, lambda: NOISE, forbidden)
    assert start.timestep(made) == 50 and torch.allclose(found, plain, atol=1e-5)


def test_no_noise_is_the_clean_latent() -> None:
    start = start_of(group({"type": "no-noise"}))
    assert type(start) is NoNoise
    for made in (schedule(**PNDM), schedule(diffusers.EulerDiscreteScheduler)):
        assert torch.equal(start.begin(made, LATENTS, lambda: NOISE, forbidden), LATENTS)


def test_no_noise_at_timestep_0_of_any_schedule() -> None:
    """What shift is measured against; schedules with sigmas that begin at 1 refuse to noise anything to 0."""
    made = schedule(diffusers.EulerDiscreteScheduler, timestep_spacing="leading", steps_offset=1)
    with pytest.raises(ValueError, match="timestep 0 is not in the schedule"):
        start_of(group(timestep=0)).timestep(made)
    assert start_of(group({"type": "no-noise"}, timestep=0)).timestep(made) == 0
    assert start_of(group({"type": "no-noise"})).timestep(made) == start_of(group()).timestep(made) == 50


def test_denoising_goes_through_the_scheduler_s_own_timesteps() -> None:
    """The reference counts twelve calls for PNDM from 60, the last at 50, not 51."""
    made, seen = schedule(**PNDM), []
    start = start_of(group({"type": "denoise", "start": 60}))
    assert type(start) is Denoise and start.timestep(made) == 50 and start.calls(made) == 11

    def estimate(noisy: Tensor, timestep: int) -> Tensor:
        seen.append(timestep)
        return NOISE

    found = start.begin(made, LATENTS, lambda: NOISE, estimate)
    assert seen == list(range(61, 50, -1))
    # An estimate that is always the noise itself leads down the forward process, near enough for PNDM.
    goal, first = (made.add_noise(LATENTS, NOISE, time) for time in (50, 61))
    assert (found - goal).norm() < 0.25 * (first - goal).norm()


def test_denoising_twice_gives_the_same() -> None:
    """PNDM keeps a history, which the second batch must not see."""
    made = schedule(**PNDM)
    start = start_of(group({"type": "denoise", "start": 60}))

    def run() -> Tensor:
        return start.begin(
            made, LATENTS, lambda: NOISE, lambda noisy, timestep: noisy * 0.3 + timestep / 1000
        )

    assert torch.equal(run(), run())


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_inversion_by_the_true_noise_is_the_forward_process(kind: str) -> None:
    """Where the network is right about the noise at every step, inversion lands where noising does."""
    made = schedule(diffusers.DDIMScheduler, prediction_type=kind)
    start = start_of(group({"type": "inversion", "steps": 7}, timestep=300))
    assert type(start) is Inversion and start.calls(made) == 7

    def estimate(noisy: Tensor, timestep: int) -> Tensor:
        alpha = made._alpha(timestep)  # type: ignore[attr-defined]
        return NOISE if kind == "epsilon" else alpha**0.5 * NOISE - (1 - alpha) ** 0.5 * LATENTS

    found = start.begin(made, LATENTS, lambda: torch.full_like(NOISE, torch.nan), estimate)
    expected = made.add_noise(LATENTS, NOISE, 300)
    # The first step starts at alpha = 1, where v is the noise; timestep 0 is what the network sees there.
    assert float((found - expected).norm() / expected.norm()) < (1e-5 if kind == "epsilon" else 3e-2)


def test_inversion_of_a_flow() -> None:
    made = Flow(diffusers.FlowMatchEulerDiscreteScheduler())
    start = start_of(group({"type": "inversion", "steps": 5}, t=260))
    found = start.begin(made, LATENTS, lambda: NOISE, lambda noisy, timestep: NOISE - LATENTS)
    assert start.timestep(made) == 260
    assert torch.allclose(found, made.add_noise(LATENTS, NOISE, 260), atol=1e-5)


def test_inversion_of_few_timesteps_has_fewer_steps() -> None:
    made = schedule(**PNDM)
    assert start_of(group({"type": "inversion", "steps": 10}, timestep=3)).calls(made) == 4


def test_a_timestep_outside_the_schedule() -> None:
    made = schedule(diffusers.EulerDiscreteScheduler, timestep_spacing="linspace")
    with pytest.raises(
        ValueError, match="is not in the schedule of EulerDiscreteScheduler, which has 0 to 999"
    ):
        made.check(1234)
