"""What holds for every family of backbones, and what only some of them have."""

from __future__ import annotations

import functools
import io
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import sentencepiece
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline import checkpoint, families
from pipeline.backbone import Backbone, Text
from pipeline.families.flux import pack, unpack
from tests import backbones

FAMILIES = list(backbones.FAMILIES)
PROMPTS = ["a red bird", "", "Two cats, on a mat" * 30]
SIZE = (64, 96)


@functools.cache
def load(family: str, dtype: torch.dtype = torch.float32) -> Backbone:
    return families.load(backbones.tiny(family), dtype=dtype, device="cpu")


def distance(ours: Tensor, theirs: Tensor) -> float:
    return float((ours.float() - theirs.float()).norm() / theirs.float().norm())


def pixels(size: tuple[int, int] = SIZE) -> Tensor:
    return torch.randint(0, 256, (3, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def size_for(loaded: Backbone) -> tuple[int, int]:
    """Small, where each pixel is a latent."""
    return SIZE if loaded.vae is not None else (16, 24)


def noisy(loaded: Backbone) -> Tensor:
    """The literal input at t = 50, float32."""
    mean, _ = loaded.encode_images(pixels(size_for(loaded)))
    draw = torch.randn(mean.shape, generator=torch.Generator().manual_seed(2))
    timestep = loaded.schedule.timestep(50)
    return loaded.schedule.scale(
        loaded.schedule.add_noise(loaded.scale_latents(mean), draw, timestep), timestep
    )


def estimate(loaded: Backbone, latents: Tensor, text: Text) -> Tensor:
    latents = latents.to(loaded.dtype)
    timestep = torch.tensor(loaded.schedule.timestep(50))
    return loaded.estimate(loaded.predict(loaded.inputs(loaded.network, latents, timestep, text)), latents)


def row(text: Text, place: int) -> Text:
    return {name: value[place : place + 1] for name, value in text.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_shapes_are_known_without_weights(family: str) -> None:
    """On the meta device, where a plan is made."""
    loaded, folder = load(family), backbones.tiny(family)
    kind, text = type(loaded), loaded.encode_text(PROMPTS)
    tokens = kind.text_tokens(folder)
    with torch.device("meta"), torch.no_grad():
        network = kind.network_class.from_config(checkpoint.config(folder, kind.network_part)).eval()
        blank = kind.blank_text(folder, tokens)
        latents = torch.zeros(1, *kind.latent_shape(folder, size_for(loaded)))
        planned = network(**kind.inputs(network, latents, 0, blank), return_dict=False)[0]
    assert all(value.device.type == "meta" for value in blank.values())
    assert {name: (value.shape[1:], value.dtype) for name, value in blank.items()} == {
        name: (value.shape[1:], value.dtype) for name, value in text.items()
    }
    found = loaded.predict(loaded.inputs(loaded.network, noisy(loaded), 50, text))
    assert planned.shape[1:] == found.shape[1:]
    assert noisy(loaded).shape[1:] == latents.shape[1:]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_does_not_depend_on_others(family: str) -> None:
    loaded = load(family)
    text, latents = loaded.encode_text(PROMPTS), noisy(loaded)
    together = estimate(loaded, latents, text)
    for place, prompt in enumerate(PROMPTS):
        alone = loaded.encode_text([prompt])
        assert all(distance(row(text, place)[name], value) < 1e-5 for name, value in alone.items())
        assert distance(together[place], estimate(loaded, latents[place : place + 1], alone)[0]) < 1e-5
    assert distance(text["prompt_embeds"][0], text["prompt_embeds"][1]) > 0.01
    other = estimate(loaded, latents, {name: value.roll(1, 0) for name, value in text.items()})
    assert distance(other, together) > 1e-5, "the prompt makes no difference"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(family: str, dtype: torch.dtype) -> None:
    """All is in the dtype asked for, but what overflows float16: T5's feed-forward layers, and SDXL's VAE."""
    half, whole = load(family, dtype), load(family)
    for name, module in half.encoders.items():
        found = {one.dtype for one in module.parameters()}
        assert found == {dtype} or (dtype == torch.float16 and found == {dtype, torch.float32}), name
    assert {one.dtype for one in half.network.parameters()} == {dtype}
    if half.vae is not None:
        as_whole = dtype == torch.float16 and family in (
            "sdxl",
            "playground",
            "pixart-alpha",
            "pixart-sigma",
            "hunyuan",
        )
        assert half.vae.dtype == (torch.float32 if as_whole else dtype)
    mean, std = half.encode_images(pixels(size_for(half)))
    assert mean.isfinite().all() and std.isfinite().all()
    assert mean.dtype == std.dtype == torch.float32
    text = half.encode_text(PROMPTS)
    assert all(value.dtype in (dtype, torch.int64) for value in text.values())
    output = estimate(half, noisy(whole), text)
    assert output.dtype == dtype and output.isfinite().all()
    assert distance(output, estimate(whole, noisy(whole), whole.encode_text(PROMPTS))) < 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_that_is_not_needed_is_loaded(family: str) -> None:
    loaded = load(family)
    modules = [loaded.network, *loaded.encoders.values(), *([loaded.vae] if loaded.vae else [])]
    assert not hasattr(loaded.vae, "decoder") and not hasattr(loaded.vae, "post_quant_conv")
    assert not any(one.requires_grad for module in modules for one in module.parameters())
    assert not any(module.training for module in modules)
    assert loaded.encoders.keys() == type(loaded).text_encoders.keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_without_text_encoders(family: str) -> None:
    """Prompts that were encoded before go on to serve."""
    loaded = families.load(backbones.tiny(family), dtype=torch.float32, device="cpu")
    text, latents = loaded.encode_text(PROMPTS), noisy(loaded)
    before = estimate(loaded, latents, text)
    loaded.drop_text_encoders()
    assert not loaded.encoders and torch.equal(estimate(loaded, latents, text), before)
    with pytest.raises(KeyError):  # and not zeros
        loaded.encode_text(["a"])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_family_of_a_network(family: str) -> None:
    """Taps can be recorded in any pipeline, of which only the network is known."""
    loaded = load(family)
    assert families.for_network(loaded.network) is families.family(backbones.tiny(family)) is type(loaded)


def test_networks_of_no_family() -> None:
    unet = diffusers.UNet2DConditionModel.from_config(
        {**load("sd1").network.config, "addition_embed_type": "image", "encoder_hid_dim": 8}
    )
    with pytest.raises(
        ValueError, match="the UNet has addition_embed_type 'image'; supported are 'text_time', 'text'"
    ):
        families.for_network(unet)
    with pytest.raises(
        ValueError, match=r"the network is a Linear; supported are UNet2DConditionModel, PixArt.*Flux"
    ):
        families.for_network(nn.Linear(1, 1))


@pytest.mark.parametrize(
    ("family", "needs"),
    [
        ("sdxl", "UNet2DConditionModel needs pooled_prompt_embeds besides prompt_embeds, and got none"),
        ("sd3", "SD3Transformer2DModel needs pooled_prompt_embeds"),
        ("flux", "FluxTransformer2DModel needs pooled_prompt_embeds"),
        ("hunyuan", "HunyuanDiT2DModel needs prompt_embeds_2"),
    ],
)
def test_text_that_is_missing(family: str, needs: str) -> None:
    loaded = load(family)
    text = {"prompt_embeds": loaded.encode_text(PROMPTS)["prompt_embeds"]}
    with pytest.raises(ValueError, match=needs):
        loaded.inputs(loaded.network, noisy(loaded), 50, text)


@pytest.mark.parametrize("family", ["pixart-sigma", "hunyuan"])
def test_without_masks_all_tokens_count(family: str) -> None:
    loaded = load(family)
    text, latents = loaded.encode_text(PROMPTS), noisy(loaded)
    bare = {name: value for name, value in text.items() if "mask" not in name}
    ones = {name: torch.ones_like(value) if "mask" in name else value for name, value in text.items()}
    assert distance(estimate(loaded, latents, bare), estimate(loaded, latents, ones)) < 1e-6
    assert distance(estimate(loaded, latents, bare), estimate(loaded, latents, text)) > 1e-4


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_long_prompts_in_windows(family: str) -> None:
    """Each window reads its own 75 tokens, as a prompt of those alone would be read; the pooled text is the first's."""
    loaded, folder = load(family), backbones.tiny(family)
    words = ["low", "er", "new"] * 60
    tokenizer = loaded.tokens["tokenizer"]
    ids = tokenizer(" ".join(words), add_special_tokens=False).input_ids
    assert type(loaded).windows(folder, " ".join(words)) == -(-len(ids) // 75) > 1
    assert type(loaded).windows(folder, "a") == type(loaded).windows(folder, "") == 1
    room, pieces, rest = 75, [], list(words)
    while (
        rest
    ):  # words that fill a window exactly do not exist for every vocabulary, so windows are compared by ids
        pieces.append(rest.pop(0))
        if len(tokenizer(" ".join(pieces), add_special_tokens=False).input_ids) == room:
            break
    assert rest, "no prompt fills the first window"
    both = loaded.encode_text([" ".join(words), "a"], windows=2)
    first, second = loaded.encode_text([" ".join(pieces)]), loaded.encode_text([" ".join(rest)])
    assert both["prompt_embeds"].shape[1] == type(loaded).text_tokens(folder, 2) == 154
    assert distance(both["prompt_embeds"][0, :77], first["prompt_embeds"][0]) < 1e-5
    assert distance(both["prompt_embeds"][0, 77:], second["prompt_embeds"][0]) < 1e-5
    assert distance(both["prompt_embeds"][1, 77:], loaded.encode_text([""])["prompt_embeds"][0]) < 1e-5
    if "pooled_prompt_embeds" in both:
        assert distance(both["pooled_prompt_embeds"][0], first["pooled_prompt_embeds"][0]) < 1e-5
        assert (
            distance(both["pooled_prompt_embeds"][1], loaded.encode_text(["a"])["pooled_prompt_embeds"][0])
            < 1e-5
        )


@pytest.mark.parametrize("family", ["pixart-alpha", "pixart-sigma", "sd3", "flux", "hunyuan", "if"])
def test_one_window_only(family: str) -> None:
    folder, loaded = backbones.tiny(family), load(family)
    assert type(loaded).windows(folder, "word " * 1000) == 1
    for ask in (lambda: type(loaded).text_tokens(folder, 2), lambda: loaded.encode_text(["a"], 2)):
        with pytest.raises(
            ValueError, match=r"text_windows is 2, but .* read a prompt in one window of \d+ tokens"
        ):
            ask()


@pytest.mark.parametrize(
    ("family", "factor"),
    [("sd1", 8), ("sdxl", 8), ("pixart-alpha", 16), ("sd3", 16), ("flux", 16), ("hunyuan", 16), ("if", 2)],
)
def test_sides_that_fit(family: str, factor: int) -> None:
    """Patches of transformers need whole numbers of them, or their last row of latents is not seen."""
    folder = backbones.tiny(family)
    kind = families.family(folder)
    assert kind.latent_shape(folder, (4 * factor, 6 * factor))[1:] != (0, 0)
    with pytest.raises(ValueError, match=f"both sides must be multiples of {factor} for this backbone"):
        kind.latent_shape(folder, (4 * factor, 6 * factor + factor // 2))


def test_sd3_has_positions_for_so_much() -> None:
    folder = backbones.tiny("sd3")
    assert families.family(folder).latent_shape(folder, (512, 64)) == (16, 64, 8)
    with pytest.raises(ValueError, match="this backbone has positions for sides of up to 512 pixels"):
        families.family(folder).latent_shape(folder, (64, 528))


def test_deepfloyd_s_latents_are_pixels() -> None:
    loaded = load("if")
    mean, std = loaded.encode_images(pixels())
    assert torch.equal(((mean + 1) * 127.5).round().to(torch.uint8), pixels())
    assert mean.min() == -1 and mean.max() == 1 and std.abs().max() == 0
    assert loaded.scale_latents(mean) is mean and loaded.vae is None


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 3))
def test_packed_and_unpacked(batch: int, rows: int, columns: int, channels: int) -> None:
    latents = torch.randn(batch, channels, 2 * rows, 2 * columns)
    tokens = pack(latents)
    assert tokens.shape == (batch, rows * columns, 4 * channels)
    assert torch.equal(unpack(tokens, 2 * rows, 2 * columns), latents)
    shape: tuple[Any, ...] = (batch, channels, 2 * rows, 2 * columns)
    assert torch.equal(tokens, diffusers.FluxPipeline._pack_latents(latents, *shape))


def test_tokenizers_of_sentencepiece(tmp_path: Path) -> None:
    """PixArt, Hunyuan-DiT and IF come with SentencePiece's own file, and without a tokenizer.json."""
    folder = tmp_path / "pixart-sigma"
    shutil.copytree(backbones.tiny("pixart-sigma"), folder)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a photo of a duck and a tree", "two red birds on a mat"] * 20),
        model_writer=model,
        vocab_size=24,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    (folder / "tokenizer" / "tokenizer.json").unlink()
    (folder / "tokenizer" / "spiece.model").write_bytes(model.getvalue())
    loaded = families.load(folder, dtype=torch.float32, device="cpu")
    expected = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue()).encode("a red duck")
    tokenizer = loaded.tokens["tokenizer"]
    assert isinstance(tokenizer, transformers.T5Tokenizer)
    assert tokenizer("a red duck").input_ids == [*expected, 1]
    assert loaded.encode_text(["a red duck"])["prompt_attention_mask"].sum() == len(expected) + 1
    assert "tokenizer/spiece.model" in checkpoint.fingerprint(folder, type(loaded).parts())
