"""Prompts for text encoders that read one window: padded or cut to its length, with a mask of the padding."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline import checkpoint
from pipeline.backbone import Text


def encode(
    tokenizer: Any, encoder: Any, prompts: Sequence[str], length: int, *, masked: bool = True
) -> tuple[Tensor, Tensor]:
    """Hidden states [n, length, C] and mask int64 [n, length], 1 for tokens and 0 for padding.

    `masked` tells whether the encoder itself leaves the padding out, as it was used when the network was trained.
    """
    found = tokenizer(
        list(prompts), padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    ).to(encoder.device)
    hidden: Tensor = encoder(found.input_ids, attention_mask=found.attention_mask if masked else None)[0]
    return hidden, found.attention_mask


def blank_joint(folder: Path, tokens: int) -> Text:
    """Zeros for one prompt, as transformers with joint attention (SD3, FLUX) take text: tokens, and a pooled vector."""
    network = checkpoint.config(folder, "transformer")
    return {
        "prompt_embeds": torch.zeros(1, tokens, network["joint_attention_dim"]),
        "pooled_prompt_embeds": torch.zeros(1, network["pooled_projection_dim"]),
    }


def lowered(prompts: Sequence[str]) -> list[str]:
    """Prompts as those families want them that were trained on lower-case captions."""
    return [prompt.lower().strip() for prompt in prompts]


def check_windows(windows: int, length: int) -> None:
    """Raise ValueError for several windows."""
    if windows > 1:
        raise ValueError(
            f"text_windows is {windows}, but this backbone's text encoders read a prompt in one window of {length}"
            " tokens; leave text_windows out"
        )
