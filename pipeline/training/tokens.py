"""The embedded backbone's tokenizer: byte pairs of its captions' words, as CLIP has them."""

from __future__ import annotations

import json
import string
from collections.abc import Sequence
from typing import Any, Final, cast

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

TOKENS: Final = 40
"""Length that prompts are padded to; a few of held-out things, whose names come in pieces, are cut."""
_VOCABULARY: Final = 1500
_END: Final = "</w>"
_START, _STOP = "<|startoftext|>", "<|endoftext|>"


def make_tokenizer(captions: Sequence[str]) -> CLIPTokenizer:
    """A tokenizer to which frequent words of the captions are one token each, and any other ASCII text some more."""
    letters = list(string.ascii_lowercase + string.digits + string.punctuation)
    pairs = Tokenizer(models.BPE(end_of_word_suffix=_END))
    pairs.normalizer = normalizers.Lowercase()
    pairs.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        initial_alphabet=letters,
        end_of_word_suffix=_END,
        special_tokens=[letter + _END for letter in letters],
        show_progress=False,
    )
    # Words in the order of their names: the trainer breaks ties by the order in which it saw them.
    pairs.train_from_iterator(sorted(set(captions)), trainer)
    vocabulary: dict[str, int] = dict(pairs.get_vocab())
    merges = _merges(pairs)
    for word in (_START, _STOP):
        vocabulary[word] = len(vocabulary)
    made: Any = CLIPTokenizer  # its signature admits merges as text only, which breaks at spaces
    return cast(CLIPTokenizer, made(vocab=vocabulary, merges=merges, model_max_length=TOKENS))


def _merges(pairs: Tokenizer) -> list[tuple[str, str]]:
    listed = json.loads(pairs.to_str())["model"]["merges"]
    return [(first, second) for first, second in listed]
