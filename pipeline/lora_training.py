"""A LoRA as a stage of the training loop: images and prompts encoded once, then noised anew in every step.

The loss is that of the backbone's own training: for x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) noise at a uniform timestep t,
the mean square of the network's estimate less the noise (Ho et al. 2020, eq. 14), or less
v = sqrt(a_t) noise - sqrt(1 - a_t) x_0 (Salimans and Ho 2022) where the scheduler says that v is predicted.

All that is random in a step comes from its generator, on the CPU. So on a CPU a run that went on is the undisturbed
one, byte for byte; on a GPU, whose kernels for attention's gradient may add up in any order, it is one like it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from pipeline import checkpoint, families
from pipeline.backbone import Backbone, Text
from pipeline.lora_images import Example
from pipeline.lora_samples import Sampler
from pipeline.training.loop import Settings
from pipeline.training.recorded import Batch
from schemas.lora import LoraSpec

_TEXT = "text."
_PREDICTIONS = ("epsilon", "v_prediction")


def check_trainable(folder: Path, image_size: Sequence[int]) -> None:
    """Refuse a backbone that LoRA cannot be trained for; its configs are enough.

    Raises:
        ValueError: its network is no UNet, it predicts neither noise nor v, or it has no latents of this size.
    """
    family = families.family(folder)
    if family.network_part != "unet":
        unets = ", ".join(
            name for one in families.FAMILIES if one.network_part == "unet" for name in one.pipelines
        )
        raise ValueError(
            f"backbone {str(folder)!r} is a {checkpoint.pipeline_class(folder)}, whose network is a transformer; LoRA"
            f" is trained for UNets only: {unets}"
        )
    kind = checkpoint.config(folder, "scheduler").get("prediction_type", "epsilon")
    if kind not in _PREDICTIONS:
        raise ValueError(
            f"backbone {str(folder)!r}: its scheduler_config.json has prediction_type {kind!r}; LoRA is trained for"
            f" {' and '.join(map(repr, _PREDICTIONS))}"
        )
    family.latent_shape(folder, image_size)


@dataclass(frozen=True)
class Encoded:
    """Images and prompts as the network takes them."""

    mean: Tensor
    """Of the latents' posterior, scaled, float32 [views, N, c, h, w]; the second view is the mirrored image."""
    deviation: Tensor
    """Standard deviation, scaled, of the same shape."""
    text: Text
    """Of all different prompts."""
    prompt: Tensor
    """Place in `text` of each image's prompt, int64 [N]."""

    def draw(self, size: int, generator: torch.Generator) -> tuple[Tensor, Text]:
        """Samples of random images' posteriors, float32 [size, c, h, w], and their text."""
        views, count = self.mean.shape[:2]
        view = torch.randint(views, (size,), generator=generator)
        image = torch.randint(count, (size,), generator=generator)
        random = torch.randn(size, *self.mean.shape[2:], generator=generator).to(self.mean.device)
        latents = self.mean[view, image] + self.deviation[view, image] * random
        return latents, {name: value[self.prompt[image]] for name, value in self.text.items()}


def encode(backbone: Backbone, examples: Sequence[Example], *, flip: bool, batch_size: int) -> Encoded:
    """Encode images [3, H, W], with `flip` mirrored ones besides, and their prompts."""
    prompts = list(dict.fromkeys(one.prompt for one in examples))
    pixels = torch.from_numpy(np.stack([one.pixels for one in examples]))
    views = [pixels, pixels.flip(-1)] if flip else [pixels]
    found = [_posterior(backbone, view, batch_size) for view in views]
    return Encoded(
        mean=torch.stack([mean for mean, _ in found]),
        deviation=torch.stack([deviation for _, deviation in found]),
        text=encode_text(backbone, prompts),
        prompt=torch.tensor([prompts.index(one.prompt) for one in examples]),
    )


def encode_text(backbone: Backbone, prompts: Sequence[str]) -> Text:
    """Prompts, one by one, in tensors that autograd takes (the backbone's own are made in inference mode)."""
    each = [backbone.encode_text([prompt]) for prompt in prompts]
    return {name: torch.cat([text[name] for text in each]).clone() for name in each[0]}


def _posterior(backbone: Backbone, pixels: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
    """Scaled mean and standard deviation [N, c, h, w] of images uint8 [N, 3, H, W]."""
    parts = [backbone.encode_images(part) for part in pixels.split(batch_size)]
    mean, deviation = (torch.cat(part).clone() for part in zip(*parts, strict=True))
    offset = backbone.scale_latents(torch.zeros_like(deviation))
    return backbone.scale_latents(mean), backbone.scale_latents(deviation) - offset


class LoraStage:
    """Trains a LoRA's factors on encoded images.

    Args:
        backbone: with the factors beside its network's layers; its VAE and text encoders are not used.
        factors: what is trained, by name.
        encoded: images and prompts.
        batch_size: images a step.
        sampler: draws the sample pictures; None for none.
    """

    name = "lora"
    made_of = ""  # lora.json in the same folder says it

    def __init__(
        self,
        backbone: Backbone,
        factors: dict[str, nn.Parameter],
        encoded: Encoded,
        batch_size: int,
        sampler: Sampler | None = None,
    ) -> None:
        self._backbone, self._factors, self._encoded = backbone, factors, encoded
        self._batch_size, self._sampler = batch_size, sampler
        config = checkpoint.config(backbone.folder, "scheduler")
        self._noising: Any = DDPMScheduler.from_config(config)  # whichever samples: of the same betas
        self._predicts_v = config.get("prediction_type") == "v_prediction"

    def parameters(self) -> dict[str, nn.Parameter]:
        """The factors, float32."""
        return self._factors

    def draw(self, generator: torch.Generator) -> Batch:
        """Latents of images, noise and timesteps, and the text of the images' prompts, named `text.`..."""
        latents, text = self._encoded.draw(self._batch_size, generator)
        noise = torch.randn(latents.shape, generator=generator).to(latents.device)
        last = self._noising.config.num_train_timesteps
        times = torch.randint(last, (len(latents),), generator=generator).to(latents.device)
        drawn = {"latents": latents, "noise": noise, "times": times}
        return drawn | {f"{_TEXT}{name}": value for name, value in text.items()}

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean square error of the estimates; a scalar, float32."""
        backbone, network = self._backbone, self._backbone.network
        latents, noise, times = batch["latents"], batch["noise"], batch["times"]
        text = {name.removeprefix(_TEXT): value for name, value in batch.items() if name.startswith(_TEXT)}
        noisy = self._noising.add_noise(latents, noise, times)
        target = self._noising.get_velocity(latents, noise, times) if self._predicts_v else noise
        device = backbone.device.type
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            inputs = backbone.inputs(network, noisy.to(backbone.dtype), times, text)
            output = network(**inputs, return_dict=False)[0]
        return nn.functional.mse_loss(backbone.estimate(output, latents).float(), target), {}

    def show(self, folder: Path, step: int) -> None:
        """Write the sample picture of a step, unless it is there."""
        if self._sampler is not None:
            self._sampler.write(folder, step)


def settings(spec: LoraSpec) -> Settings:
    """How the loop trains a LoRA: the last weights are the result, no average."""
    return Settings(
        steps=spec.steps,
        batch_size=spec.backbone.batch_size,
        learning_rate=spec.learning_rate,
        warmup=max(1, spec.steps // 20),
        decay=0.1,
        ema=None,
        seed=spec.seed,
        checkpoint_every=spec.checkpoint_every,
    )
