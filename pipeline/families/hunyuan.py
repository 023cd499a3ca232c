"""Hunyuan-DiT: a bilingual BERT and mT5, a transformer with rotary positions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import HunyuanDiT2DModel
from diffusers.models.embeddings import get_2d_rotary_pos_embed
from torch import Tensor, nn
from transformers import BertModel, BertTokenizer, T5EncoderModel, T5Tokenizer

from pipeline import checkpoint
from pipeline.backbone import Backbone, Text, given, per_image
from pipeline.families import padded

_BERT_TOKENS, _T5_TOKENS = 77, 256  # as in diffusers' pipeline
_ORIGINAL = (1024, 1024)  # its `original_size`
_TRAINED = 512 // 8  # latents a side, to which rotary positions are scaled
_FACTOR = 8  # pixels a latent


class HunyuanDiT(Backbone):
    """BERT's tokens come first, mT5's behind them. The estimate has a learned variance behind it."""

    pipelines = ("HunyuanDiTPipeline",)
    network_part = "transformer"
    network_class = HunyuanDiT2DModel
    text_encoders: ClassVar = {"text_encoder": BertModel, "text_encoder_2": T5EncoderModel}
    tokenizers: ClassVar = {"tokenizer": BertTokenizer, "tokenizer_2": T5Tokenizer}
    vae_overflows = True

    @classmethod
    def text_tokens(cls, folder: Path, windows: int = 1) -> int:
        padded.check_windows(windows, _BERT_TOKENS)
        return _BERT_TOKENS + _T5_TOKENS

    @classmethod
    def blank_text(cls, folder: Path, tokens: int) -> Text:
        network = checkpoint.config(folder, "transformer")
        return {
            "prompt_embeds": torch.zeros(1, _BERT_TOKENS, network["cross_attention_dim"]),
            "prompt_attention_mask": torch.zeros(1, _BERT_TOKENS, dtype=torch.long),
            "prompt_embeds_2": torch.zeros(1, tokens - _BERT_TOKENS, network["cross_attention_dim_t5"]),
            "prompt_attention_mask_2": torch.zeros(1, tokens - _BERT_TOKENS, dtype=torch.long),
        }

    @torch.inference_mode()
    def encode_text(self, prompts: Sequence[str], windows: int = 1) -> Text:
        padded.check_windows(windows, _BERT_TOKENS)
        bert, t5 = (
            padded.encode(
                self.tokens[f"tokenizer{suffix}"], self.encoders[f"text_encoder{suffix}"], prompts, length
            )
            for suffix, length in (("", _BERT_TOKENS), ("_2", _T5_TOKENS))
        )
        return {
            "prompt_embeds": bert[0],
            "prompt_attention_mask": bert[1],
            "prompt_embeds_2": t5[0],
            "prompt_attention_mask_2": t5[1],
        }

    @staticmethod
    def inputs(network: nn.Module, latents: Tensor, timestep: float | Tensor, text: Text) -> dict[str, Any]:
        """Sizes, crop and style are the pipeline's defaults. Without masks all tokens count."""
        first, second = text["prompt_embeds"], given(text, "prompt_embeds_2", network)
        target = [_FACTOR * side for side in latents.shape[2:]]
        sizes = torch.tensor([*_ORIGINAL, *target, 0, 0])
        return {
            "hidden_states": latents,
            "timestep": per_image(timestep, latents).to(latents.dtype),
            "encoder_hidden_states": first,
            "text_embedding_mask": text.get("prompt_attention_mask", _all(first)),
            "encoder_hidden_states_t5": second,
            "text_embedding_mask_t5": text.get("prompt_attention_mask_2", _all(second)),
            "image_meta_size": sizes.to(latents).repeat(len(latents), 1),
            "style": torch.zeros(len(latents), dtype=torch.long, device=latents.device),
            "image_rotary_emb": _rotary(network, latents),
        }


def _all(hidden: Tensor) -> Tensor:
    return torch.ones(hidden.shape[:2], dtype=torch.long, device=hidden.device)


def _rotary(network: Any, latents: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine [h/2 * w/2, head width]: positions run over the part of the square grid of training that a
    picture of this shape covers when its longer side is fitted to it."""
    patch = network.config.patch_size
    grid = tuple(side // patch for side in latents.shape[2:])
    side = _TRAINED // patch
    covered = [round(side * part / max(grid)) for part in grid]
    start = tuple(round((side - part) / 2) for part in covered)
    stop = tuple(a + b for a, b in zip(start, covered, strict=True))
    width = network.inner_dim // network.num_heads
    cosine, sine = get_2d_rotary_pos_embed(
        width, (start, stop), grid, device=latents.device, output_type="pt"
    )
    return cosine, sine
