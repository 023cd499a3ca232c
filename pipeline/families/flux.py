"""FLUX.1: T5 and pooled CLIP text, a transformer over packed latents, flow matching."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from diffusers import FluxTransformer2DModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from pipeline import checkpoint
from pipeline.backbone import Backbone, Text, given, per_image
from pipeline.families import clip, padded

_PATCH = 2  # latents a side of a token
_GUIDANCE = 3.5  # `guidance_scale` of diffusers' pipeline


class Flux(Backbone):
    """A token is 2 x 2 latents; positions are its row and column. Padding of the prompt is not masked."""

    pipelines = ("FluxPipeline", "FluxImg2ImgPipeline")
    network_part = "transformer"
    network_class = FluxTransformer2DModel
    text_encoders: ClassVar = {"text_encoder": CLIPTextModel, "text_encoder_2": T5EncoderModel}
    tokenizers: ClassVar = {"tokenizer": CLIPTokenizer, "tokenizer_2": T5Tokenizer}

    @classmethod
    def patch(cls, folder: Path) -> int:
        return _PATCH

    @classmethod
    def text_tokens(cls, folder: Path, windows: int = 1) -> int:
        """512, diffusers' default; 256 without guidance embedding, since FLUX.1-schnell was distilled with no more."""
        length = 512 if checkpoint.config(folder, "transformer").get("guidance_embeds") else 256
        padded.check_windows(windows, length)
        return length

    @classmethod
    def blank_text(cls, folder: Path, tokens: int) -> Text:
        return padded.blank_joint(folder, tokens)

    @torch.inference_mode()
    def encode_text(self, prompts: Sequence[str], windows: int = 1) -> Text:
        length = self.text_tokens(self.folder, windows)
        hidden, _ = padded.encode(
            self.tokens["tokenizer_2"], self.encoders["text_encoder_2"], prompts, length, masked=False
        )
        room = checkpoint.config(self.folder, "text_encoder")["max_position_embeddings"]
        ids = clip.token_ids(self.tokens["tokenizer"], prompts, room, 1).to(self.device)
        return {
            "prompt_embeds": hidden,
            "pooled_prompt_embeds": self.encoders["text_encoder"](ids).pooler_output,
        }

    @staticmethod
    def inputs(network: nn.Module, latents: Tensor, timestep: float | Tensor, text: Text) -> dict[str, Any]:
        prompt, config = text["prompt_embeds"], cast(Any, network.config)
        guidance = None
        if config.guidance_embeds:
            guidance = torch.full([len(latents)], _GUIDANCE, device=latents.device, dtype=torch.float32)
        return {
            "hidden_states": pack(latents),
            "timestep": per_image(timestep, latents).to(latents.dtype) / 1000,
            "guidance": guidance,
            "pooled_projections": given(text, "pooled_prompt_embeds", network),
            "encoder_hidden_states": prompt,
            "txt_ids": torch.zeros(prompt.shape[1], 3).to(latents),
            "img_ids": _positions(latents),
        }

    def estimate(self, output: Tensor, latents: Tensor) -> Tensor:
        return unpack(output, latents.shape[2], latents.shape[3])


def pack(latents: Tensor) -> Tensor:
    """Latents [B, c, h, w] to tokens [B, h/2 * w/2, 4c], whose channels are c, then row and column in the patch."""
    patches = latents.unflatten(3, (-1, _PATCH)).unflatten(2, (-1, _PATCH))  # [B, c, h/2, 2, w/2, 2]
    return patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """The inverse of `pack`, for latents of a height and a width."""
    patches = tokens.unflatten(1, (height // _PATCH, width // _PATCH)).unflatten(3, (-1, _PATCH, _PATCH))
    return patches.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def _positions(latents: Tensor) -> Tensor:
    """(0, row, column) of every token [h/2 * w/2, 3]."""
    rows, columns = (torch.arange(side // _PATCH) for side in latents.shape[2:])
    grid = torch.cartesian_prod(rows, columns)
    return nn.functional.pad(grid, (1, 0)).to(latents)
