"""Stable Diffusion 3 and 3.5: two CLIP text encoders and maybe T5, a transformer, flow matching."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor, nn
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, T5EncoderModel, T5Tokenizer

from pipeline import checkpoint
from pipeline.backbone import Backbone, Text, given, per_image
from pipeline.families import clip, padded

_T5_TOKENS = 256  # `max_sequence_length` of diffusers' pipeline
_CLIPS = ("", "_2")


class StableDiffusion3(Backbone):
    """CLIP's tokens come first, T5's behind them. Without T5, which may be left out, its tokens are zeros."""

    pipelines = ("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline")
    network_part = "transformer"
    network_class = SD3Transformer2DModel
    text_encoders: ClassVar = {
        "text_encoder": CLIPTextModelWithProjection,
        "text_encoder_2": CLIPTextModelWithProjection,
        "text_encoder_3": T5EncoderModel,
    }
    tokenizers: ClassVar = {
        "tokenizer": CLIPTokenizer,
        "tokenizer_2": CLIPTokenizer,
        "tokenizer_3": T5Tokenizer,
    }
    optional_parts = frozenset({"text_encoder_3", "tokenizer_3"})

    @classmethod
    def latent_shape(cls, folder: Path, image_size: Sequence[int]) -> tuple[int, int, int]:
        channels, height, width = super().latent_shape(folder, image_size)
        most = checkpoint.config(folder, "transformer")["pos_embed_max_size"] * cls.patch(folder)
        if max(height, width) > most:
            raise ValueError(
                f"image_size {list(image_size)}: this backbone has positions for sides of up to"
                f" {most * image_size[0] // height} pixels"
            )
        return channels, height, width

    @classmethod
    def text_tokens(cls, folder: Path, windows: int = 1) -> int:
        length = _clip_tokens(folder) + _T5_TOKENS
        padded.check_windows(windows, length)
        return length

    @classmethod
    def blank_text(cls, folder: Path, tokens: int) -> Text:
        return padded.blank_joint(folder, tokens)

    @torch.inference_mode()
    def encode_text(self, prompts: Sequence[str], windows: int = 1) -> Text:
        padded.check_windows(windows, self.text_tokens(self.folder))
        length, width = _clip_tokens(self.folder), self.network.config.joint_attention_dim
        hidden, pooled = [], []
        for suffix in _CLIPS:
            ids = clip.token_ids(self.tokens[f"tokenizer{suffix}"], prompts, length, 1).to(self.device)
            output = self.encoders[f"text_encoder{suffix}"](ids, output_hidden_states=True)
            hidden.append(output.hidden_states[-2])
            pooled.append(output.text_embeds)
        both = torch.cat(hidden, dim=-1)
        both = nn.functional.pad(both, (0, width - both.shape[-1]))
        return {
            "prompt_embeds": torch.cat([both, self._t5(prompts, both)], dim=1),
            "pooled_prompt_embeds": torch.cat(pooled, dim=-1),
        }

    def _t5(self, prompts: Sequence[str], both: Tensor) -> Tensor:
        if not (self.folder / "text_encoder_3").is_dir():
            return both.new_zeros(len(prompts), _T5_TOKENS, both.shape[-1])
        encoder, tokenizer = self.encoders["text_encoder_3"], self.tokens["tokenizer_3"]
        return padded.encode(tokenizer, encoder, prompts, _T5_TOKENS, masked=False)[0]

    @staticmethod
    def inputs(network: nn.Module, latents: Tensor, timestep: float | Tensor, text: Text) -> dict[str, Any]:
        return {
            "hidden_states": latents,
            "timestep": per_image(timestep, latents).float(),
            "encoder_hidden_states": text["prompt_embeds"],
            "pooled_projections": given(text, "pooled_prompt_embeds", network),
        }


def _clip_tokens(folder: Path) -> int:
    return int(checkpoint.config(folder, "text_encoder")["max_position_embeddings"])
