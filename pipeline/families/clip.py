"""Prompts for CLIP text encoders: padded to their length (77 tokens), longer ones in several windows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from pipeline import checkpoint
from pipeline.backbone import Backbone


def token_ids(tokenizer: Any, prompts: Sequence[str], length: int, windows: int) -> Tensor:
    """Token ids [n * windows, length]: a prompt's windows one behind the other, each with its own start and end.

    A prompt that one window holds comes out as CLIP's tokenizer pads it; the windows behind a prompt's end are
    those of an empty prompt; tokens beyond the last window are cut.
    """
    room = length - 2
    ids = []
    for text in tokenizer(list(prompts), add_special_tokens=False, truncation=False).input_ids:
        for start in range(0, windows * room, room):
            part = [tokenizer.bos_token_id, *text[start : start + room], tokenizer.eos_token_id]
            ids.append(part + [tokenizer.pad_token_id] * (length - len(part)))
    return torch.tensor(ids)


def joined(hidden: Tensor, windows: int) -> Tensor:
    """Hidden states of windows [n * windows, length, C], those of a prompt one behind the other: [n, tokens, C]."""
    return hidden.unflatten(0, (-1, windows)).flatten(1, 2)


class ClipBackbone(Backbone):
    """A family whose text comes from CLIP alone, in as many windows as a prompt is given."""

    @classmethod
    def text_tokens(cls, folder: Path, windows: int = 1) -> int:
        return windows * int(checkpoint.config(folder, "text_encoder")["max_position_embeddings"])

    @classmethod
    def windows(cls, folder: Path, prompt: str) -> int:
        tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer", local_files_only=True)
        count = len(tokenizer(prompt, add_special_tokens=False, truncation=False).input_ids)
        return max(1, -(-count // (cls.text_tokens(folder) - 2)))
