"""The frozen diffusion model, whatever its family: text, latents, noise and the network of one checkpoint.

What families differ in (encoders, the network's inputs) is in `pipeline.families`, one module each. Components are
loaded one by one from the classes named there: never from what a checkpoint's own index asks for.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn

from pipeline import checkpoint
from pipeline.noising import Schedule, load_schedule

Text = dict[str, Tensor]
"""Prompts as encoders made them: `prompt_embeds` [n, tokens, C], and what else the family's network takes, by
diffusers' names; every tensor has the prompts as its first axis."""


class Backbone(ABC):
    """A loaded checkpoint on one device.

    Args:
        folder: a diffusers folder that `sources.locate` returned.
        dtype: of computation.
        device: a torch device.
    """

    pipelines: ClassVar[tuple[str, ...]]
    """Pipeline classes (`_class_name` in model_index.json) whose checkpoints this family loads."""
    network_part: ClassVar[str] = "unet"
    """The component whose activations are features: `unet` or `transformer`."""
    network_class: ClassVar[Any] = UNet2DConditionModel
    text_encoders: ClassVar[Mapping[str, Any]]
    """Component -> class."""
    tokenizers: ClassVar[Mapping[str, Any]]
    """Component -> class."""
    vae_class: ClassVar[Any] = AutoencoderKL
    """None for networks that work on pixels."""
    vae_overflows: ClassVar[bool] = False
    """Whether the VAE's activations exceed float16, so that it computes in float32 then; its config's `force_upcast`
    may say that these weights do not."""
    optional_parts: ClassVar[frozenset[str]] = frozenset()
    """Components that a checkpoint may lack."""

    def __init__(self, folder: Path, *, dtype: torch.dtype, device: torch.device | str) -> None:
        self.folder = folder
        self.device = torch.device(device)
        self.dtype = dtype
        self.extras: dict[str, Any] = {}
        """What techniques loaded, by its path, to be shared by groups."""
        _make_deterministic()
        self.schedule: Schedule = load_schedule(folder, checkpoint.config(folder, "scheduler"))
        self.network: Any = self._load(self.network_class, self.network_part, dtype)
        self.vae: Any = None
        if self.vae_class is not None:
            overflows = self.vae_overflows and checkpoint.config(folder, "vae").get("force_upcast", True)
            self.vae = self._load(
                self.vae_class, "vae", torch.float32 if overflows and dtype == torch.float16 else dtype
            )
            del self.vae.decoder, self.vae.post_quant_conv
        self.encoders: dict[str, Any] = {
            name: self._load(kind, name, dtype)
            for name, kind in self.text_encoders.items()
            if (folder / name).is_dir()
        }
        self.tokens: dict[str, Any] = {
            name: kind.from_pretrained(folder, subfolder=name, local_files_only=True)
            for name, kind in self.tokenizers.items()
            if (folder / name).is_dir()
        }

    # What follows needs configs only, no weights.

    @classmethod
    def parts(cls) -> list[str]:
        """The components that are loaded, and so fetched and fingerprinted."""
        vae = [] if cls.vae_class is None else ["vae"]
        return [cls.network_part, *vae, *cls.text_encoders, *cls.tokenizers, "scheduler"]

    @classmethod
    def weighted_parts(cls) -> list[str]:
        """Those of them that have weights."""
        return [part for part in cls.parts() if part not in cls.tokenizers and part != "scheduler"]

    @classmethod
    def latent_shape(cls, folder: Path, image_size: Sequence[int]) -> tuple[int, int, int]:
        """(c, h, w) of the latents of images [H, W].

        Raises:
            ValueError: a side that cannot be reduced to whole latents. (A UNet itself takes any.)
        """
        vae = checkpoint.config(folder, "vae")
        factor = 2 ** (len(vae["block_out_channels"]) - 1)
        check_sides(image_size, factor * cls.patch(folder))
        return vae["latent_channels"], image_size[0] // factor, image_size[1] // factor

    @classmethod
    def patch(cls, folder: Path) -> int:
        """Latents a side of what the network takes as one token; 1 for UNets."""
        return int(checkpoint.config(folder, cls.network_part).get("patch_size", 1))

    @classmethod
    @abstractmethod
    def text_tokens(cls, folder: Path, windows: int = 1) -> int:
        """Tokens that a prompt is padded to; CLIP's can be encoded in several windows.

        Raises:
            ValueError: several windows, in a family that has only one.
        """

    @classmethod
    def windows(cls, folder: Path, prompt: str) -> int:
        """Windows that a whole prompt needs; 1 in families without."""
        return 1

    @classmethod
    @abstractmethod
    def blank_text(cls, folder: Path, tokens: int) -> Text:
        """What `encode_text` gives for one prompt, in shapes and dtypes only: zeros on torch's default device."""

    @classmethod
    def blank_inputs(
        cls, folder: Path, network: nn.Module, latents: Sequence[int], tokens: int
    ) -> dict[str, Any]:
        """What `inputs` gives for one image with latents [c, h, w] and one prompt, in shapes and dtypes only."""
        text = cls.blank_text(folder, tokens)
        return cls.inputs(network, torch.zeros(1, *latents), torch.zeros(()), text)

    # What follows computes.

    @abstractmethod
    def encode_text(self, prompts: Sequence[str], windows: int = 1) -> Text:
        """Prompts, padded or cut to `text_tokens`, to what the network takes."""

    @staticmethod
    @abstractmethod
    def inputs(network: nn.Module, latents: Tensor, timestep: float | Tensor, text: Text) -> dict[str, Any]:
        """The network's keyword arguments for one call.

        Args:
            network: an instance of `network_class`, for its config.
            latents: [B, c, h, w], as the schedule's `scale` gave them, in the network's dtype.
            timestep: for all images, or [B].
            text: of B prompts.
        """

    def estimate(self, output: Tensor, latents: Tensor) -> Tensor:
        """The network's output as an estimate [B, c, h, w] of noise (or v, or flow) for `latents` of that shape."""
        return output[:, : latents.shape[1]]  # some networks estimate a variance besides

    @torch.inference_mode()
    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels uint8 [B, 3, H, W] to mean and standard deviation of the posterior, float32 [B, c, h, w]."""
        images = to_unit_range(pixels.to(self.device))
        posterior = self.vae.encode(images.to(self.vae.dtype)).latent_dist
        return posterior.mean.float(), posterior.std.float()

    def scale_latents(self, sample: Tensor) -> Tensor:
        """A sample of the posterior, shifted and scaled as the network expects; float32 [B, c, h, w]."""
        shift = self.vae.config.get("shift_factor") or 0.0
        return (sample - shift) * self.vae.config.scaling_factor

    @torch.inference_mode()
    def predict(self, inputs: Mapping[str, Any]) -> Tensor:
        """One pass of the network over what `inputs` gave."""
        output: Tensor = self.network(**inputs, return_dict=False)[0]
        return output

    def drop_text_encoders(self) -> None:
        """Free their memory: all prompts that will ever be needed are encoded."""
        self.encoders.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _load(self, kind: Any, part: str, dtype: torch.dtype) -> Any:
        return load_module(kind, self.folder / part, dtype=dtype, device=self.device)


def load_module(kind: Any, folder: Path, *, dtype: torch.dtype, device: torch.device) -> Any:
    """A frozen network from its own folder, complete.

    Raises:
        ValueError: weights that its config asks for are not there. Left to themselves, some classes make up the rest
            at random, anew in each process.
    """
    options = {"use_safetensors": True, "local_files_only": True, "output_loading_info": True}
    try:
        module, info = kind.from_pretrained(folder, torch_dtype=dtype, **options)
        missing = sorted(info["missing_keys"])
        problem = f"{len(missing)} of its weights are missing, such as {missing[0]}" if missing else None
    except (NotImplementedError, RuntimeError) as error:  # diffusers' classes stop by themselves
        problem = str(error).splitlines()[0]
    if problem is not None:
        raise ValueError(
            f"{folder}: {problem}; the file does not hold what its config.json describes, get it again"
        )
    return module.to(device).eval().requires_grad_(False)


def check_sides(image_size: Sequence[int], factor: int) -> None:
    """Raise ValueError unless both sides are multiples of `factor` pixels."""
    if any(side % factor for side in image_size):
        raise ValueError(
            f"image_size {list(image_size)}: both sides must be multiples of {factor} for this backbone"
        )


def to_unit_range(pixels: Tensor) -> Tensor:
    """Pixels uint8 to float32 in [-1, 1]."""
    return pixels.float() / 127.5 - 1


def given(text: Text, name: str, network: nn.Module) -> Tensor:
    """One of the text's tensors, or ValueError where a caller left it out."""
    if name not in text:
        raise ValueError(f"{type(network).__name__} needs {name} besides prompt_embeds, and got none")
    return text[name]


def per_image(timestep: float | Tensor, latents: Tensor) -> Tensor:
    """A timestep for all images, or [B], as [B] on the latents' device."""
    return torch.as_tensor(timestep, device=latents.device).expand(len(latents))


def _make_deterministic() -> None:
    """The same bytes from run to run: no kernels chosen by timing, no TensorFloat-32 in place of float32."""
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
