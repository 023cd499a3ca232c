"""Timesteps, noise, and steps up and down, against the reference's own run, stock schedulers and closed forms."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import cv2
import diffusers
import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from pipeline.noising import Diffusion, Flow, Schedule, inversion_timesteps, load_schedule

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
PNDM = {"_class_name": "PNDMScheduler", "skip_prk_steps": True, "steps_offset": 1}
DDIM = {"_class_name": "DDIMScheduler", "steps_offset": 1, "clip_sample": False}
EULER = {"_class_name": "EulerDiscreteScheduler", "steps_offset": 1, "timestep_spacing": "leading"}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}


def schedule(folder: Path, **config: Any) -> Schedule:
    (folder / "scheduler").mkdir()
    config = config if "FlowMatch" in config["_class_name"] else {**BETAS, **config}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    return load_schedule(folder, config)


def numbers(seed: int, batch: int = 3) -> Tensor:
    return torch.randn(batch, 4, 4, 4, generator=torch.Generator().manual_seed(seed))


def alphas() -> Tensor:
    """Of the betas that all these schedulers have."""
    stock: Any = diffusers.DDIMScheduler(**BETAS)
    found: Tensor = stock.alphas_cumprod
    return found


def distance(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize(
    ("config", "t", "timestep"),
    [
        (PNDM, 50, 51),
        (PNDM, 1, 2),
        (PNDM, 999, 999),
        (PNDM | {"steps_offset": 0}, 50, 50),
        (DDIM, 50, 50),
        (EULER, 50, 50),
        (EULER, 999, 999),
        ({"_class_name": "DPMSolverMultistepScheduler"}, 50, 50),
        (FLOW, 50, 50),
        (FLOW, 999, 999),
    ],
)
def test_t_counts_as_the_paper_does(tmp_path: Path, config: dict[str, Any], t: int, timestep: int) -> None:
    """PNDM's list has one entry more than others, so t = 50 means timestep 51 there."""
    assert schedule(tmp_path, **config).timestep(t) == timestep


@pytest.mark.parametrize("timestep", [0, 51, 999])
def test_noise_as_the_scheduler_adds_it(tmp_path: Path, timestep: int) -> None:
    pndm: Any = diffusers.PNDMScheduler(**BETAS)
    expected = pndm.add_noise(numbers(1), numbers(2), torch.full((3,), timestep))
    assert torch.equal(schedule(tmp_path, **PNDM).add_noise(numbers(1), numbers(2), timestep), expected)


def test_euler_scales_the_input_at_every_timestep(tmp_path: Path) -> None:
    """Euler keeps its place in the schedule from the first call on, so a second timestep got the first one's scale."""
    euler = schedule(tmp_path, **EULER)
    for timestep in (50, 300, 50):
        noisy = euler.add_noise(numbers(1), numbers(2), timestep)
        sigma = (1 / alphas()[timestep] - 1) ** 0.5
        assert distance(noisy, numbers(1) + sigma * numbers(2)) < 1e-5
        assert distance(euler.scale(noisy, timestep), noisy / (sigma**2 + 1) ** 0.5) < 1e-5


@pytest.mark.parametrize("kind", ["DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_the_network_sees_the_same_whatever_the_scheduler(tmp_path: Path, kind: str) -> None:
    """x_t = sqrt(a) x_0 + sqrt(1 - a) noise, once it is scaled."""
    one = schedule(tmp_path, _class_name=kind)
    alpha = alphas()[200]
    expected = alpha**0.5 * numbers(1) + (1 - alpha) ** 0.5 * numbers(2)
    assert distance(one.scale(one.add_noise(numbers(1), numbers(2), 200), 200), expected) < 1e-5


@pytest.mark.parametrize(
    ("kind", "spacing", "last"),
    [("EulerDiscreteScheduler", "leading", 1000), ("DPMSolverMultistepScheduler", "linspace", 999)],
)
def test_timesteps_outside_the_schedule(tmp_path: Path, kind: str, spacing: str, last: int) -> None:
    """Euler failed with an IndexError, in the actors; DPMSolver took another timestep's noise."""
    one = schedule(tmp_path, _class_name=kind, steps_offset=1, timestep_spacing=spacing)
    with pytest.raises(
        ValueError, match=f"timestep 0 is not in the schedule of {kind}, which has 1 to {last}"
    ):
        one.check(0)
    one.check(1)


def test_no_noise_at_timestep_0(tmp_path: Path) -> None:
    """Where noise is no table of sigmas, it means hardly any."""
    schedule(tmp_path, **PNDM).check(0)


@pytest.mark.parametrize(
    ("config", "becomes"),
    [
        ({"_class_name": "DDPMScheduler", "clip_sample": False}, "DDIMScheduler"),
        ({"_class_name": "EulerAncestralDiscreteScheduler"}, "DDIMScheduler"),
        ({"_class_name": "HeunDiscreteScheduler"}, "DDIMScheduler"),
        ({"_class_name": "LCMScheduler"}, "DDIMScheduler"),
        (EULER | {"use_karras_sigmas": True}, "DDIMScheduler"),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++"},
            "DDIMScheduler",
        ),
        ({"_class_name": "DPMSolverMultistepScheduler", "timestep_spacing": "leading"}, "DDIMScheduler"),
        ({"_class_name": "DPMSolverMultistepScheduler"}, "DPMSolverMultistepScheduler"),
        ({"_class_name": "UniPCMultistepScheduler"}, "UniPCMultistepScheduler"),
        (PNDM, "PNDMScheduler"),
        (EULER, "EulerDiscreteScheduler"),
    ],
)
def test_schedulers_that_draw_or_skip(tmp_path: Path, config: dict[str, Any], becomes: str) -> None:
    """Their steps drew from the global generator, so a row's features depended on what ran before it."""
    one = schedule(tmp_path, **config)
    assert type(one._scheduler).__name__ == becomes
    noisy = one.add_noise(numbers(1), numbers(2), one.denoising(60, 50).timesteps[0])
    ends = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        steps, latents = one.denoising(60, 50), noisy
        for place, time in enumerate(steps.timesteps[:-1]):
            assert time - steps.timesteps[place + 1] == 1 or becomes == "PNDMScheduler"
            latents = steps.step(numbers(2), place, latents)
        ends.append(latents)
    assert torch.equal(*ends)
    # Given the true noise, each step leads to where the forward process would be; nothing is clipped to [-1, 1].
    # PNDM's second step takes its timestep for a repeated one, which it is only from the start of its list.
    bound = 0.01 if becomes == "PNDMScheduler" else 1e-4
    assert distance(ends[0], one.add_noise(numbers(1), numbers(2), steps.timesteps[-1])) < bound


def test_no_schedule(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="names the class 'UNet2DModel', which is no scheduler of diffusers"):
        load_schedule(tmp_path, {"_class_name": "UNet2DModel"})
    with pytest.raises(
        ValueError, match="EDMEulerScheduler, whose noise is not a function of training's timesteps"
    ):
        schedule(tmp_path, _class_name="EDMEulerScheduler")


def test_denoising_takes_the_reference_s_timesteps(tmp_path: Path) -> None:
    steps = schedule(tmp_path, **PNDM).denoising(60, 50)
    assert steps.timesteps == list(range(61, 49, -1))


@torch.no_grad()
def test_denoising_as_the_reference_did() -> None:
    """Twelve calls of its UNet with its ControlNet, from its first input to its last."""
    golden = load_file(GOLDEN / "dev.sd15.canny-denoise60.safetensors")
    config = json.loads((GOLDEN / "sd15-tiny" / "scheduler" / "scheduler_config.json").read_text())
    steps = load_schedule(GOLDEN / "sd15-tiny", config).denoising(60, 50)
    unet: Any = UNet2DConditionModel.from_pretrained(GOLDEN / "sd15-tiny" / "unet").eval()
    controlnet: Any = ControlNetModel.from_pretrained(GOLDEN / "controlnet-canny-tiny").eval()
    picture = Image.open(GOLDEN / "dev.png").convert("RGB").resize((64, 64), Image.Resampling.BICUBIC)
    edges = torch.from_numpy(cv2.Canny(np.asarray(picture), 100, 200)).float().expand(1, 3, 64, 64) / 255
    latents, text = golden["__first_input"], golden["__prompt_embeds"]
    for place, time in enumerate(steps.timesteps[:-1]):
        down, mid = controlnet(latents, time, text, controlnet_cond=edges, return_dict=False)
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        output = unet(steps.scale(latents, place), time, text, return_dict=False, **residuals)[0]
        latents = steps.step(output, place, latents)
    assert len(steps.timesteps) == int(golden["__unet_calls"])
    assert steps.timesteps[-1] == int(golden["__timestep"])
    assert distance(golden["__first_input"], golden["__unet_input"]) > 1e-3
    assert distance(latents, golden["__unet_input"]) < 5e-6


def test_batches_do_not_share_a_history(tmp_path: Path) -> None:
    """PNDM's steps depend on those before them."""
    one = schedule(tmp_path, **PNDM)

    def denoised(seed: int) -> Tensor:
        steps, latents = one.denoising(60, 50), numbers(1)
        for place in range(len(steps.timesteps) - 1):
            latents = steps.step(numbers(seed + place), place, latents)
        return latents

    first = denoised(1)
    denoised(100)
    assert torch.equal(denoised(1), first)


class Line:
    """A network that knows where images and noise come from: its estimate is exact on x_t = a x_0 + b noise."""

    def __init__(self, clean: Tensor, noise: Tensor) -> None:
        self.clean, self.noise = clean, noise

    def output(self, kind: str, alpha: float) -> Tensor:
        if kind == "epsilon":
            return self.noise
        if kind == "v_prediction":  # Salimans & Ho 2022
            return alpha**0.5 * self.noise - (1 - alpha) ** 0.5 * self.clean
        return self.noise - self.clean  # flow


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_inversion_against_the_closed_form(tmp_path: Path, kind: str) -> None:
    """With exact estimates, x at every timestep is what the forward process makes of the same noise."""
    one = schedule(tmp_path, **DDIM, prediction_type=kind)
    line = Line(numbers(1), numbers(2))
    latents = one.add_noise(line.clean, line.noise, 0)
    times = [0, 100, 400, 900]
    for now, then in itertools.pairwise(times):
        latents = one.invert(latents, line.output(kind, float(alphas()[now])), now, then)
        assert distance(latents, one.add_noise(line.clean, line.noise, then)) < 1e-5


def test_inversion_from_clean_latents(tmp_path: Path) -> None:
    """x_then = sqrt(a_then) x_0 + sqrt(1 - a_then) noise, at -1 with a = 1."""
    one = schedule(tmp_path, **DDIM)
    alpha = float(alphas()[99])
    expected = alpha**0.5 * numbers(1) + (1 - alpha) ** 0.5 * numbers(2)
    assert distance(one.invert(numbers(1), numbers(2), -1, 99), expected) < 1e-6


def network(latents: Tensor, timestep: int) -> Tensor:
    """A smooth one, whose estimate changes a little from step to step, as a real one's does."""
    return torch.tanh(latents + timestep / 1000) + 0.1


@pytest.mark.parametrize("config", [DDIM, DDIM | {"prediction_type": "v_prediction"}, FLOW])
def test_inverted_and_denoised_again(tmp_path: Path, config: dict[str, Any]) -> None:
    """DDIM inversion and DDIM are each other's inverse, but for the step size."""
    one = schedule(tmp_path, **config)
    start = numbers(1)
    latents, estimates = start, 0
    for now, then in inversion_timesteps(200, 200):
        latents = one.invert(latents, network(latents, max(now, 0)), now, then)
        estimates += 1
    assert estimates == 200 and distance(latents, start) > 0.1
    steps = one.denoising(200, 1)
    assert steps.timesteps[0] == 200
    for place, time in enumerate(steps.timesteps):
        latents = steps.step(network(steps.scale(latents, place), time), place, latents)
    assert distance(latents, start) < 0.02


def test_inversion_of_other_predictions(tmp_path: Path) -> None:
    one = schedule(tmp_path, **DDIM, prediction_type="sample")
    with pytest.raises(
        ValueError, match=r"inversion needs a network that predicts epsilon or v; .*predicts sample"
    ):
        one.check_inversion()


def test_denoising_over_a_timestep_that_is_there_twice(tmp_path: Path) -> None:
    """DPM-Solver's list has 500 twice: every row came out as not a number."""
    one = schedule(tmp_path, _class_name="DPMSolverMultistepScheduler")
    with pytest.raises(ValueError, match=r"denoising from 505 to 495: DPMSolver.* has timestep 500 twice"):
        one.denoising(505, 495)
    assert one.denoising(60, 50).timesteps[-1] == 50


@given(st.integers(0, 999), st.integers(1, 1000))
def test_inversion_s_stops(timestep: int, steps: int) -> None:
    """From clean latents to the timestep without a gap, upwards, in no more steps than asked for."""
    pairs = list(inversion_timesteps(timestep, steps))
    assert pairs[0][0] == -1 and pairs[-1][1] == timestep
    assert all(now < then for now, then in pairs) and len(pairs) <= steps
    assert len(pairs) >= min(steps, timestep)
    assert all(first[1] == second[0] for first, second in itertools.pairwise(pairs))


def test_flow(tmp_path: Path) -> None:
    """x_t = (1 - s) x_0 + s noise, and one step of the exact flow leads from any s to any other."""
    one = schedule(tmp_path, **FLOW)
    assert isinstance(one, Flow)
    line = Line(numbers(1), numbers(2))
    noisy = one.add_noise(line.clean, line.noise, 250)
    assert distance(noisy, 0.75 * line.clean + 0.25 * line.noise) < 1e-6
    assert one.scale(noisy, 250) is noisy
    velocity = line.output("flow", 0)
    assert distance(one.invert(noisy, velocity, 250, 600), one.add_noise(line.clean, line.noise, 600)) < 1e-5
    assert (
        distance(one.invert(line.clean, velocity, -1, 600), one.add_noise(line.clean, line.noise, 600)) < 1e-5
    )
    steps = one.denoising(250, 247)
    assert steps.timesteps == [250, 249, 248, 247]
    for place in range(3):
        noisy = steps.step(velocity, place, noisy)
    assert distance(noisy, one.add_noise(line.clean, line.noise, 247)) < 1e-5


def test_flow_steps_as_stock_diffusers_does(tmp_path: Path) -> None:
    """Without a shift, its thousand steps are ours."""
    stock: Any = diffusers.FlowMatchEulerDiscreteScheduler()
    stock.set_timesteps(1000)
    one = schedule(tmp_path, **FLOW)
    latents = theirs = numbers(1)
    steps = one.denoising(300, 295)
    for place, time in enumerate(steps.timesteps[:-1]):
        theirs = stock.step(network(theirs, time), stock.timesteps[1000 - time], theirs, return_dict=False)[0]
        latents = steps.step(network(latents, time), place, latents)
    assert distance(latents, theirs) < 1e-5


def test_flow_by_prediction_type(tmp_path: Path) -> None:
    """Flow-matching backbones come with solvers that serve both."""
    config = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
    assert isinstance(schedule(tmp_path, _class_name="DPMSolverMultistepScheduler", **config), Flow)
    (tmp_path / "other").mkdir()
    assert isinstance(schedule(tmp_path / "other", _class_name="DPMSolverMultistepScheduler"), Diffusion)


def test_v_prediction_and_epsilon_agree(tmp_path: Path) -> None:
    """The same noise, estimated either way, inverts to the same latents."""
    ends = []
    for kind in ("epsilon", "v_prediction"):
        (tmp_path / kind).mkdir()
        one = schedule(tmp_path / kind, **DDIM, prediction_type=kind)
        alpha = float(alphas()[100])
        noisy = one.add_noise(numbers(1), numbers(2), 100)
        ends.append(one.invert(noisy, Line(numbers(1), numbers(2)).output(kind, alpha), 100, 300))
    assert distance(*ends) < 1e-5
