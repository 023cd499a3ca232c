"""What the network knows: its error on noise that was laid over scenes, with prompts that fit and prompts that do not.

The loss is the mean squared error of the noise that the network predicts, whatever it predicts by training, averaged
over some draws of noise for each scene. Two losses of a scene have the same noise, and intervals are over scenes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline import checkpoint, techniques
from pipeline.backbone import Backbone
from pipeline.embedded_figures.features import BATCH
from pipeline.embedded_figures.figure import Figure, Goal
from pipeline.embedded_figures.latents import drawn
from pipeline.embedded_figures.scenes import Scene, shuffled_captions
from pipeline.embedded_figures.statistics import interval, paired
from pipeline.noising import Schedule
from pipeline.scenes.captions import QUALITY_WORDS, Quality
from schemas import techniques as specs

TIMES = (100, 300, 500, 700)
QUALITY_TIMES = (50, 100, 200, 300)
_FIRST_BACKBONE = 0.0012
"""The first embedded backbone's difference between shuffled and right captions at t = 300, +- 0.0002; in latents of its
own."""
_UNIT = "MSE"
Losses = NDArray[np.float64]


@torch.inference_mode()
def losses(
    backbone: Backbone, scenes: Sequence[Scene], latents: Tensor, prompts: Sequence[str], t: int, draws: int
) -> Losses:
    """The loss of each scene, [scenes].

    Args:
        backbone: any of diffusion over timesteps.
        scenes: whom the noise belongs to.
        latents: of the scenes, clean, float32 [scenes, c, h, w].
        prompts: one for each scene.
        t: noise strength in thousandths, as a group's.
        draws: of noise, which the loss is the mean over.
    """
    schedule, timestep = backbone.schedule, backbone.schedule.timestep(t)
    kind = checkpoint.config(backbone.folder, "scheduler").get("prediction_type", "epsilon")
    found = np.zeros(len(scenes))
    for start in range(0, len(scenes), BATCH):
        part = slice(start, start + BATCH)
        text, clean = backbone.encode_text(list(prompts[part])), latents[part]
        for draw in range(draws):
            noise = drawn(scenes[part], clean, draw)
            noisy = schedule.add_noise(clean, noise, timestep)
            seen = schedule.scale(noisy, timestep).to(backbone.dtype)
            output = backbone.predict(backbone.inputs(backbone.network, seen, timestep, text))
            predicted = as_noise(backbone.estimate(output, noisy), noisy, schedule, timestep, kind)
            found[part] += (predicted - noise).square().mean((1, 2, 3)).double().cpu().numpy() / draws
    return found


def as_noise(output: Tensor, noisy: Tensor, schedule: Schedule, timestep: int, kind: str) -> Tensor:
    """The noise that a network's output [B, c, h, w] stands for, float32.

    Args:
        output: of the network for `noisy`.
        noisy: x_t = alpha x_0 + sigma noise.
        schedule, timestep: that made it.
        kind: of prediction, as the scheduler's config has it; v = alpha noise - sigma x_0.

    Raises:
        ValueError: another kind than epsilon or v_prediction.
    """
    if kind == "epsilon":
        return output.float()
    if kind != "v_prediction":
        raise ValueError(f"the network predicts {kind!r}; known are epsilon and v_prediction")
    one, zero = torch.ones(1, 1, 1, 1, device=noisy.device), torch.zeros(1, 1, 1, 1, device=noisy.device)
    alpha, sigma = schedule.add_noise(one, zero, timestep), schedule.add_noise(zero, one, timestep)
    return alpha * output.float() + sigma * noisy


def captions(backbone: Backbone, scenes: Sequence[Scene], latents: Tensor, draws: int) -> list[Figure]:
    """How much lower the loss is with a scene's own caption than with that of a scene of other classes."""
    others = shuffled_captions(scenes)
    places = [place for place, other in enumerate(others) if other is not None]
    chosen, clean = [scenes[place] for place in places], latents[places]
    right, wrong = [scene.caption for scene in chosen], [other for other in others if other is not None]
    found = []
    for t in TIMES:
        ours, shuffled = (losses(backbone, chosen, clean, texts, t, draws) for texts in (right, wrong))
        difference = paired(shuffled, ours)
        found += [
            Figure(f"denoising loss, right caption, t = {t}", interval(ours), _UNIT),
            Figure(
                f"denoising loss, shuffled minus right caption, t = {t}", difference, _UNIT, Goal("above", 0)
            ),
        ]
        if t == 300:
            beside = f"beside the first backbone's {_FIRST_BACKBONE}"
            what = f"denoising loss, shuffled minus right caption, t = {t}, {beside}"
            found.append(Figure(what, difference.times(1 / _FIRST_BACKBONE), "times", Goal("at least", 2)))
    return found


def quality_words(
    backbone: Backbone, scenes: Sequence[Scene], latents: Tensor, draws: int, most: int
) -> list[Figure]:
    """How much lower the loss is with words on quality that are true than with those that are not; below 0 is lower.

    On at most `most` blurry and as many sharp scenes; a quality that no two scenes have gives no figure.
    """
    found = []
    pairs: tuple[tuple[Quality, Quality], ...] = (("blurry", "sharp"), ("sharp", "blurry"))
    for true, false in pairs:
        places = [place for place, scene in enumerate(scenes) if scene.quality == true][:most]
        if len(places) < 2:
            continue
        chosen, clean = [scenes[place] for place in places], latents[places]
        texts = [[scene.content + QUALITY_WORDS[words] for scene in chosen] for words in (true, false)]
        by_time = [
            np.subtract(*(losses(backbone, chosen, clean, prompts, t, draws) for prompts in texts))
            for t in QUALITY_TIMES
        ]
        what = f"denoising loss, {true} scenes, words for {true} minus words for {false}"
        span = f"t = {QUALITY_TIMES[0]} to {QUALITY_TIMES[-1]}"
        found.append(Figure(f"{what}, {span}", interval(np.mean(by_time, 0)), _UNIT, Goal("below", 0)))
        found += [
            Figure(f"{what}, t = {t}", interval(one), _UNIT)
            for t, one in zip(QUALITY_TIMES, by_time, strict=True)
        ]
    return found


def lora_change(
    backbone: Backbone,
    lora: Path,
    scenes: Sequence[Scene],
    latents: Tensor,
    draws: int,
    where: str,
    goal: Goal,
) -> Figure:
    """How a LoRA changes the loss with right captions, in percent of the loss without, over all of `TIMES`.

    The interval is that of the paired difference; the loss without LoRA, by which it is divided, is taken as exact.
    """
    prompts = [scene.caption for scene in scenes]

    def mean_losses() -> Losses:
        return np.mean([losses(backbone, scenes, latents, prompts, t, draws) for t in TIMES], 0)

    without = mean_losses()
    with lora_in_force(backbone, lora):
        ours = mean_losses()
    change = paired(ours, without).times(100 / float(without.mean()))
    return Figure(f"denoising loss with LoRA {lora.stem}, {where}", change, "% of that without", goal)


@contextmanager
def lora_in_force(backbone: Backbone, lora: Path) -> Iterator[None]:
    """The backbone with a LoRA's changes; without a trace of them afterwards."""
    technique = techniques.load(specs.Lora(type="lora", source=str(lora)), backbone)
    technique.attach()
    try:
        yield
    finally:
        technique.detach()
