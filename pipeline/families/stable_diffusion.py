"""Stable Diffusion 1.x and 2.x: one CLIP text encoder, a UNet on latents of 4 channels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from pipeline import checkpoint
from pipeline.backbone import Text
from pipeline.families import clip


class StableDiffusion(clip.ClipBackbone):
    """Epsilon- and v-prediction alike: the difference is the scheduler's."""

    pipelines = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline")
    text_encoders: ClassVar = {"text_encoder": CLIPTextModel}
    tokenizers: ClassVar = {"tokenizer": CLIPTokenizer}

    @classmethod
    def blank_text(cls, folder: Path, tokens: int) -> Text:
        width = checkpoint.config(folder, "text_encoder")["hidden_size"]
        return {"prompt_embeds": torch.zeros(1, tokens, width)}

    @torch.inference_mode()
    def encode_text(self, prompts: Sequence[str], windows: int = 1) -> Text:
        length = self.text_tokens(self.folder)
        ids = clip.token_ids(self.tokens["tokenizer"], prompts, length, windows).to(self.device)
        hidden: Tensor = self.encoders["text_encoder"](ids).last_hidden_state
        return {"prompt_embeds": clip.joined(hidden, windows)}

    @staticmethod
    def inputs(network: nn.Module, latents: Tensor, timestep: float | Tensor, text: Text) -> dict[str, Any]:
        return {"sample": latents, "timestep": timestep, "encoder_hidden_states": text["prompt_embeds"]}
