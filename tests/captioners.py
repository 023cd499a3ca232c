"""Tiny image-to-text models with random weights, saved as users have theirs: model, processor and tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    CLIPVisionConfig,
    GitConfig,
    GitForCausalLM,
    GitProcessor,
    GPT2Config,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
_WORDS = [*_SPECIAL, "<image>", "a", "photo", "of", "describe", *(f"word{n}" for n in range(60))]
_TOKENS: dict[str, Any] = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
_VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
_TEXT: dict[str, Any] = {
    "vocab_size": len(_WORDS),
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.5,  # so that captions differ from picture to picture
    **_TOKENS,
}
_SQUARE = {"height": 32, "width": 32}
_CHAT = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, with a start and an end."""
    inner = Tokenizer(models.WordPiece({word: n for n, word in enumerate(_WORDS)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.decoder = decoders.WordPiece()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        bos_token="[CLS]",
        eos_token="[SEP]",
    )


def git(folder: Path, *, seed: int = 0, crop: bool = True) -> str:
    """GIT: a decoder that sees image and text. Without `crop` its processor keeps an image's proportions."""
    torch.manual_seed(seed)
    GitForCausalLM(GitConfig(vision_config=_VISION, **_TEXT)).save_pretrained(folder)
    size: dict[str, Any] = {
        "size": {"shortest_edge": 32},
        "crop_size": {"height": 32, "width": 32},
        "do_center_crop": crop,
    }
    GitProcessor(CLIPImageProcessorPil(**size), tokenizer()).save_pretrained(folder)
    return str(folder)


def vit_gpt2(folder: Path) -> str:
    """An image encoder and a text decoder, with an image processor and a tokenizer but no common processor."""
    torch.manual_seed(0)
    decoder = GPT2Config(vocab_size=len(_WORDS), n_embd=16, n_layer=2, n_head=2, n_positions=64, **_TOKENS)
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(ViTConfig(**_VISION), decoder)
    model = VisionEncoderDecoderModel(config=config)
    for one in model.parameters():
        torch.nn.init.normal_(one, std=0.5)
    model.generation_config.update(decoder_start_token_id=2, **_TOKENS)
    model.save_pretrained(folder)
    ViTImageProcessorPil(size=_SQUARE).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


def llava(folder: Path) -> str:
    """A chat model: it has a template, and is asked."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(**_VISION, projection_dim=16)
    config = LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(**_TEXT, num_key_value_heads=2),
        image_token_index=_WORDS.index("<image>"),
        image_seq_length=16,
        vision_feature_layer=-1,
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    words = tokenizer()
    words.add_special_tokens({"additional_special_tokens": ["<image>"]})
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=_SQUARE)
    LlavaProcessor(
        images,
        words,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=_CHAT,
    ).save_pretrained(folder)
    return str(folder)
