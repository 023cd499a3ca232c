from __future__ import annotations

from pathlib import Path

from transformers import CLIPTokenizer

from pipeline.training.tokens import TOKENS, make_tokenizer

CAPTIONS = [
    "a photo of a brown tiger, snow",
    "a photo of a red bird, sea",
    "a photo of a tiger, low quality",
] * 3


def test_words_of_the_captions_are_one_token_each() -> None:
    tokenizer = make_tokenizer(CAPTIONS)
    assert tokenizer.tokenize("a photo of a tiger") == ["a</w>", "photo</w>", "of</w>", "a</w>", "tiger</w>"]


def test_any_text_has_tokens() -> None:
    """Unknown words come in pieces, never as the unknown token, which is the end's."""
    tokenizer = make_tokenizer(CAPTIONS)
    ids = tokenizer("Zebra-fish & 3 (odd) things!?").input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.eos_token_id == tokenizer.pad_token_id
    assert tokenizer.eos_token_id not in ids[:-1]
    assert (
        str(tokenizer.decode(ids, skip_special_tokens=True)).replace(" ", "") == "zebra-fish&3(odd)things!?"
    )


def test_the_order_of_captions_does_not_matter() -> None:
    one, other = make_tokenizer(CAPTIONS), make_tokenizer(CAPTIONS[::-1])
    assert one.get_vocab() == other.get_vocab()


def test_saved_and_loaded(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(CAPTIONS)
    tokenizer.save_pretrained(tmp_path)
    loaded = CLIPTokenizer.from_pretrained(tmp_path)
    assert loaded(CAPTIONS).input_ids == tokenizer(CAPTIONS).input_ids
    assert loaded.model_max_length == TOKENS
