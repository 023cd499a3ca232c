"""PixArt-Alpha and -Sigma: a T5 text encoder, a transformer over patches of 2 x 2 latents."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import PixArtTransformer2DModel
from torch import Tensor, nn
from transformers import T5EncoderModel, T5Tokenizer

from pipeline import checkpoint
from pipeline.backbone import Backbone, Text, per_image
from pipeline.families import padded

_TOKENS = {"PixArtAlphaPipeline": 120, "PixArtSigmaPipeline": 300}
"""`max_sequence_length` of diffusers' pipelines."""
_FACTOR = 8  # pixels a latent


class PixArt(Backbone):
    """Prompts are lower-cased, as they were in training. The estimate has a learned variance behind it."""

    pipelines = tuple(_TOKENS)
    network_part = "transformer"
    network_class = PixArtTransformer2DModel
    text_encoders: ClassVar = {"text_encoder": T5EncoderModel}
    tokenizers: ClassVar = {"tokenizer": T5Tokenizer}
    vae_overflows = True

    @classmethod
    def text_tokens(cls, folder: Path, windows: int = 1) -> int:
        length = _TOKENS[checkpoint.pipeline_class(folder)]
        padded.check_windows(windows, length)
        return length

    @classmethod
    def blank_text(cls, folder: Path, tokens: int) -> Text:
        width = checkpoint.config(folder, "text_encoder")["d_model"]
        return {
            "prompt_embeds": torch.zeros(1, tokens, width),
            "prompt_attention_mask": torch.zeros(1, tokens, dtype=torch.long),
        }

    @torch.inference_mode()
    def encode_text(self, prompts: Sequence[str], windows: int = 1) -> Text:
        length = self.text_tokens(self.folder, windows)
        hidden, mask = padded.encode(
            self.tokens["tokenizer"], self.encoders["text_encoder"], padded.lowered(prompts), length
        )
        return {"prompt_embeds": hidden, "prompt_attention_mask": mask}

    @staticmethod
    def inputs(network: nn.Module, latents: Tensor, timestep: float | Tensor, text: Text) -> dict[str, Any]:
        """Networks for 1024 px are told the picture's size and aspect ratio. Without a mask all tokens count."""
        conditions: dict[str, Any] = {"resolution": None, "aspect_ratio": None}
        if network.use_additional_conditions:
            height, width = (_FACTOR * side for side in latents.shape[2:])
            conditions = {
                "resolution": torch.tensor([height, width]).to(latents).expand(len(latents), -1),
                "aspect_ratio": torch.tensor([height / width]).to(latents).expand(len(latents), -1),
            }
        return {
            "hidden_states": latents,
            "timestep": per_image(timestep, latents),
            "encoder_hidden_states": text["prompt_embeds"],
            "encoder_attention_mask": text.get("prompt_attention_mask"),
            "added_cond_kwargs": conditions,
        }
