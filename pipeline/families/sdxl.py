"""Stable Diffusion XL, and what has its layout (Playground v2): two CLIP text encoders, pooled text, picture sizes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from pipeline import checkpoint
from pipeline.backbone import Text, given
from pipeline.families import clip

_FACTOR = 8  # pixels a latent, in all of them


class StableDiffusionXL(clip.ClipBackbone):
    """Text is both encoders' penultimate hidden states, side by side, and the second one's pooled projection."""

    pipelines = ("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline")
    text_encoders: ClassVar = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
    tokenizers: ClassVar = {"tokenizer": CLIPTokenizer, "tokenizer_2": CLIPTokenizer}
    vae_overflows = True

    @classmethod
    def blank_text(cls, folder: Path, tokens: int) -> Text:
        first, second = (checkpoint.config(folder, name) for name in cls.text_encoders)
        width = first["hidden_size"] + second["hidden_size"]
        return {
            "prompt_embeds": torch.zeros(1, tokens, width),
            "pooled_prompt_embeds": torch.zeros(1, second["projection_dim"]),
        }

    @torch.inference_mode()
    def encode_text(self, prompts: Sequence[str], windows: int = 1) -> Text:
        """Of a prompt in several windows, the first one's pooled text stands for all."""
        length = self.text_tokens(self.folder)
        hidden = []
        for encoder, tokenizer in zip(self.text_encoders, self.tokenizers, strict=True):
            ids = clip.token_ids(self.tokens[tokenizer], prompts, length, windows).to(self.device)
            output = self.encoders[encoder](ids, output_hidden_states=True)
            hidden.append(output.hidden_states[-2])
        pooled: Tensor = output.text_embeds
        return {
            "prompt_embeds": clip.joined(torch.cat(hidden, dim=-1), windows),
            "pooled_prompt_embeds": pooled[::windows],
        }

    @staticmethod
    def inputs(network: nn.Module, latents: Tensor, timestep: float | Tensor, text: Text) -> dict[str, Any]:
        """Original and target size are the picture's own, and nothing was cropped, as in diffusers' pipeline."""
        height, width = (_FACTOR * side for side in latents.shape[2:])
        times = torch.tensor([height, width, 0, 0, height, width])
        return {
            "sample": latents,
            "timestep": timestep,
            "encoder_hidden_states": text["prompt_embeds"],
            "added_cond_kwargs": {
                "text_embeds": given(text, "pooled_prompt_embeds", network),
                "time_ids": times.to(latents).expand(len(latents), -1),
            },
        }
