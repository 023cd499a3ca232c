"""The frozen diffusion model: text, latents, noise and the network of a Stable Diffusion checkpoint.

Loaded from stock diffusers classes, component by component: the image decoder and the safety checker are never used.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from pipeline import checkpoint

TRAIN_TIMESTEPS = 1000


def resolve_timestep(folder: Path, t: int | None, timestep: int | None) -> int:
    """The timestep that the network sees.

    `t` counts as the paper's extractor does: the scheduler is set to 1000 steps and entered at strength t / 1000, so
    t = 50 is its entry `1000 - 50`: timestep 51 with PNDM and `steps_offset` 1.

    Raises:
        ValueError: a timestep that is not in this scheduler's schedule, which it must be where noise is counted in
            sigmas.
    """
    scheduler = load_scheduler(folder)
    if timestep is None:
        assert t is not None
        timestep = int(scheduler.timesteps[TRAIN_TIMESTEPS - t])
    try:
        _noised(scheduler, torch.zeros(1), torch.zeros(1), timestep)
    except IndexError:
        first, last = int(scheduler.timesteps.min()), int(scheduler.timesteps.max())
        raise ValueError(
            f"timestep {timestep} is not in the schedule of {type(scheduler).__name__}, which has {first} to {last}"
        ) from None
    return timestep


def _scheduler_class(name: str) -> Any:
    found = getattr(diffusers, name, None)
    if not (isinstance(found, type) and issubclass(found, diffusers.SchedulerMixin)):
        raise ValueError(
            f"scheduler_config.json names the class {name!r}, which is no scheduler of diffusers"
        )
    return found


def load_scheduler(folder: Path) -> Any:
    """The checkpoint's own scheduler, set to every training timestep."""
    name = checkpoint.config(folder, "scheduler")["_class_name"]
    scheduler = _scheduler_class(name).from_pretrained(folder, subfolder="scheduler")
    scheduler.set_timesteps(TRAIN_TIMESTEPS)
    return scheduler


def latent_size(folder: Path, image_size: Sequence[int]) -> tuple[int, int]:
    """(h, w) of the latents of images [H, W].

    Raises:
        ValueError: a side that the VAE cannot reduce to whole latents. (The network itself takes any.)
    """
    vae_factor = 2 ** (len(checkpoint.config(folder, "vae")["block_out_channels"]) - 1)
    height, width = image_size
    if height % vae_factor or width % vae_factor:
        raise ValueError(
            f"image_size {list(image_size)}: both sides must be multiples of {vae_factor} for this VAE"
        )
    return height // vae_factor, width // vae_factor


def text_length(folder: Path) -> int:
    """Tokens a prompt is padded to."""
    return int(checkpoint.config(folder, "text_encoder")["max_position_embeddings"])


class Backbone:
    """A loaded checkpoint on one device.

    Args:
        folder: a diffusers folder that `checkpoint.locate` returned.
        dtype: of computation.
        device: a torch device.
    """

    def __init__(self, folder: Path, *, dtype: torch.dtype, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self.dtype = dtype
        _make_deterministic()
        options: dict[str, Any] = {"torch_dtype": dtype, "use_safetensors": True, "local_files_only": True}
        unet = diffusers.UNet2DConditionModel.from_pretrained(folder, subfolder="unet", **options)
        vae = diffusers.AutoencoderKL.from_pretrained(folder, subfolder="vae", **options)
        del vae.decoder, vae.post_quant_conv
        text_encoder: Any = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder", **options)
        self.unet = unet.to(self.device).eval().requires_grad_(False)
        self.vae = vae.to(self.device).eval().requires_grad_(False)
        self.text_encoder = text_encoder.to(self.device).eval().requires_grad_(False)
        self.tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer", local_files_only=True)
        self._scheduler = load_scheduler(folder)
        self._at: dict[int, Any] = {}

    @torch.inference_mode()
    def encode_text(self, prompts: Sequence[str]) -> Tensor:
        """Prompts, padded or cut to the encoder's length, to embeddings [n, tokens, C]."""
        tokens = self.tokenizer(
            list(prompts),
            padding="max_length",
            max_length=self.text_encoder.config.max_position_embeddings,
            truncation=True,
            return_tensors="pt",
        )
        embeddings: Tensor = self.text_encoder(tokens.input_ids.to(self.device)).last_hidden_state
        return embeddings

    @torch.inference_mode()
    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels uint8 [B, 3, H, W] to mean and standard deviation of the posterior, float32 [B, c, h, w]."""
        images = (pixels.to(self.device, torch.float32) / 127.5 - 1).to(self.dtype)
        posterior = self.vae.encode(images).latent_dist
        return posterior.mean.float(), posterior.std.float()

    def sample_latents(self, mean: Tensor, std: Tensor, draw: Tensor) -> Tensor:
        """A posterior sample from standard normal numbers, scaled as the network expects; float32 [B, c, h, w]."""
        shift = self.vae.config.shift_factor or 0.0
        return (mean + std * draw.to(mean.device) - shift) * self.vae.config.scaling_factor

    def add_noise(self, latents: Tensor, noise: Tensor, timestep: int) -> Tensor:
        """x_t of x_0 [B, c, h, w] at a timestep, as the network takes it; computed in float32, returned in `dtype`."""
        # Schedulers that scale their input remember where in the schedule they are, so each timestep has its own.
        if timestep not in self._at:
            self._at[timestep] = copy.deepcopy(self._scheduler)
        return _noised(self._at[timestep], latents, noise.to(latents.device), timestep).to(self.dtype)

    @torch.inference_mode()
    def predict(self, noisy: Tensor, timestep: int, text: Tensor) -> None:
        """One pass of the network, made for what hooks record in it.

        Args:
            noisy: [B, c, h, w] from `add_noise`.
            timestep: for all images.
            text: [B, tokens, C].
        """
        self.unet(noisy, torch.tensor(timestep, device=self.device), encoder_hidden_states=text)


def _noised(scheduler: Any, latents: Tensor, noise: Tensor, timestep: int) -> Tensor:
    times = torch.full((len(latents),), timestep, dtype=torch.long, device=latents.device)
    noisy: Tensor = scheduler.add_noise(latents, noise, times)
    scaled: Tensor = scheduler.scale_model_input(noisy, times[0])
    return scaled


def _make_deterministic() -> None:
    """The same bytes from run to run: no kernels chosen by timing, no TensorFloat-32 in place of float32."""
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
