"""DeepFloyd IF, its first stage: T5 text, a UNet on the pixels themselves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import T5EncoderModel, T5Tokenizer

from pipeline import checkpoint
from pipeline.backbone import Backbone, Text, check_sides, to_unit_range
from pipeline.families import padded

_TOKENS = 77  # that the network was trained with


class DeepFloydIF(Backbone):
    """The latents are the pixels, in [-1, 1]. The estimate has a learned variance behind it."""

    pipelines = ("IFPipeline", "IFImg2ImgPipeline")
    text_encoders: ClassVar = {"text_encoder": T5EncoderModel}
    tokenizers: ClassVar = {"tokenizer": T5Tokenizer}
    vae_class = None

    @classmethod
    def latent_shape(cls, folder: Path, image_size: Sequence[int]) -> tuple[int, int, int]:
        unet = checkpoint.config(folder, "unet")
        # Its upsampling blocks double what they get, whatever the size of the connection that skipped them.
        check_sides(image_size, 2 ** (len(unet["block_out_channels"]) - 1))
        return unet["in_channels"], image_size[0], image_size[1]

    @classmethod
    def text_tokens(cls, folder: Path, windows: int = 1) -> int:
        padded.check_windows(windows, _TOKENS)
        return _TOKENS

    @classmethod
    def blank_text(cls, folder: Path, tokens: int) -> Text:
        return {"prompt_embeds": torch.zeros(1, tokens, checkpoint.config(folder, "text_encoder")["d_model"])}

    @torch.inference_mode()
    def encode_text(self, prompts: Sequence[str], windows: int = 1) -> Text:
        length = self.text_tokens(self.folder, windows)
        encoder, tokenizer = self.encoders["text_encoder"], self.tokens["tokenizer"]
        return {"prompt_embeds": padded.encode(tokenizer, encoder, padded.lowered(prompts), length)[0]}

    @staticmethod
    def inputs(network: nn.Module, latents: Tensor, timestep: float | Tensor, text: Text) -> dict[str, Any]:
        return {"sample": latents, "timestep": timestep, "encoder_hidden_states": text["prompt_embeds"]}

    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The pixels themselves, which have no deviation."""
        images = to_unit_range(pixels.to(self.device))
        return images, torch.zeros_like(images)

    def scale_latents(self, sample: Tensor) -> Tensor:
        return sample
