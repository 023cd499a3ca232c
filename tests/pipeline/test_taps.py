from __future__ import annotations

import gc
import json
import time
import weakref
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.models.attention import FeedForward
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from pipeline import families
from pipeline.taps import Recorder, record, shapes
from schemas.taps import names
from tests import networks

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
TOLERANCE = 5e-6  # relative, float32; another interpolation of the control image already differs by more
MAP = "down-level0-repeat1-vit-block0-self-map"
SDXL_SIZE = {
    "block_out_channels": [320, 640, 1280],
    "attention_head_dim": [5, 10, 20],
    "transformer_layers_per_block": [1, 2, 10],
    "cross_attention_dim": 2048,
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "norm_num_groups": 32,
}


@cache
def golden(name: str) -> dict[str, Tensor]:
    return load_file(GOLDEN / f"{name}.safetensors")


@cache
def tiny_unet(model: str = "sd15-tiny") -> Any:
    return UNet2DConditionModel.from_pretrained(GOLDEN / model / "unet").eval()


def unet_config(model: str) -> dict[str, Any]:
    return json.loads((GOLDEN / model / "unet" / "config.json").read_text())


def expected(name: str) -> dict[str, Tensor]:
    return {tap: value for tap, value in golden(name).items() if not tap.startswith("__")}


def inputs(batch: int = 1, size: tuple[int, int] = (8, 8)) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, timestep and text for sd15-tiny; every image of the batch has its own."""
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(batch, 4, *size, generator=generator)
    return latents, torch.tensor(51), torch.randn(batch, 77, 32, generator=generator)


@torch.no_grad()
def run(
    taps: str | list[str], *args: Any, network: nn.Module | None = None, **kwargs: Any
) -> dict[str, Tensor]:
    network = network or tiny_unet()
    args = args or inputs()
    return Recorder(network, taps).run(lambda: network(*args, **kwargs))


def distance(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def hooks(network: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in network.modules())


@pytest.mark.parametrize(
    ("file", "model"),
    [("dev.sd15.all", "sd15-tiny"), ("dev.sdxl.all", "sdxl-tiny"), ("dev.sd15.attn", "sd15-tiny")],
)
def test_parity_with_the_reference(file: str, model: str) -> None:
    stored, want = golden(file), expected(file)
    found = record(
        SimpleNamespace(unet=tiny_unet(model)),
        stored["__unet_input"],
        stored["__timestep"],
        stored["__prompt_embeds"],
        list(want),
        pooled_prompt_embeds=stored.get("__pooled"),
    )
    assert found.keys() == want.keys()
    assert {tap: value.shape for tap, value in found.items()} == {tap: want[tap].shape for tap in found}
    assert max(distance(found[tap], want[tap]) for tap in want) < TOLERANCE


@pytest.mark.parametrize("file", ["dev.sd15.canny", "dev.sd15.canny-denoise60"])
def test_parity_with_controlnet(file: str) -> None:
    stored, want = golden(file), expected(file)
    image = np.asarray(
        Image.open(GOLDEN / "dev.png").convert("RGB").resize((64, 64), Image.Resampling.BICUBIC)
    )
    edges = torch.from_numpy(cv2.Canny(image, 100, 200)).float() / 255
    given: dict[str, Any] = {
        "controlnet": ControlNetModel.from_pretrained(GOLDEN / "controlnet-canny-tiny"),
        "control_image": edges.expand(1, 3, 64, 64),
    }
    pipe = SimpleNamespace(unet=tiny_unet())
    positional = (stored["__unet_input"], stored["__timestep"], stored["__prompt_embeds"], list(want))
    found = record(pipe, *positional, **given)
    assert max(distance(found[tap], want[tap]) for tap in want) < TOLERANCE
    without = record(pipe, *positional)
    assert min(distance(without[tap], want[tap]) for tap in want) > 1e-3, "the ControlNet made no difference"


def test_record_refuses_what_does_not_fit() -> None:
    args = (*inputs(), "legacy")
    pipe = SimpleNamespace(unet=tiny_unet())
    with pytest.raises(
        ValueError, match="SimpleNamespace has neither a UNet nor a transformer; taps are recorded"
    ):
        record(SimpleNamespace(), *args)
    with pytest.raises(ValueError, match="of controlnet and control_image, controlnet is missing"):
        record(pipe, *args, control_image=torch.zeros(1, 3, 64, 64))
    with pytest.raises(ValueError, match="UNet2DConditionModel needs pooled_prompt_embeds besides"):
        record(SimpleNamespace(unet=tiny_unet("sdxl-tiny")), *args)
    with pytest.raises(ValueError, match="nearest: unet-in"):
        record(pipe, *inputs(), ["unet-inn"])


@torch.no_grad()
@pytest.mark.parametrize("name", networks.CONFIGS)
def test_record_calls_every_network_as_its_family_does(name: str) -> None:
    network, text = networks.network(name), networks.text(name)
    pipe = SimpleNamespace(**{"unet" if name == "deepfloyd" else "transformer": network})
    prompt = text.pop("prompt_embeds")
    found = record(pipe, networks.latents(name), 261, prompt, ["middle"], **text)
    arguments = networks.inputs(name)
    want = Recorder(network, "middle").run(lambda: network(**arguments))
    assert all(torch.equal(found[tap], want[tap]) for tap in want)
    if name != "deepfloyd":
        given: dict[str, Any] = {
            "controlnet": nn.Identity(),
            "control_image": torch.zeros(1, 3, 64, 96),
            **text,
        }
        with pytest.raises(ValueError, match=r"a \w+ takes no ControlNet here; leave it out"):
            record(pipe, networks.latents(name), 261, prompt, ["middle"], **given)


def test_record_passes_model_inputs_on() -> None:
    """A masked prompt token has no weight in a cross-map, as it has none in the network's own attention."""
    mask = torch.ones(1, 77, dtype=torch.bool)
    mask[:, 10:] = False
    tap = "mid-vit-block0-cross-map"
    found = record(SimpleNamespace(unet=tiny_unet()), *inputs(), [tap], encoder_attention_mask=mask)[tap]
    assert found[..., 10:].max() == 0 and torch.allclose(found.sum(-1), torch.ones(1, 4, 1))


ODD: dict[str, dict[str, Any]] = {
    "one level": {"down_block_types": ["DownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D"]},
    "no mid block": {"mid_block_type": None},
    "mid block without attention": {"mid_block_type": "UNetMidBlock2D"},
    "units differ by level": {"layers_per_block": [1, 2]},
    "depths differ by level": {"transformer_layers_per_block": [2, 1]},
    "depths differ by unit": {
        "transformer_layers_per_block": [[1], [2]],
        "reverse_transformer_layers_per_block": [[1, 1], [1, 2]],
        "mid_block_type": "UNetMidBlock2D",
    },
}


def odd_unet(changes: dict[str, Any]) -> Any:
    config = {
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "layers_per_block": 1,
        "cross_attention_dim": 8,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
        **changes,
    }
    network: Any = UNet2DConditionModel(**config, block_out_channels=[8] * len(config["down_block_types"]))
    return network.eval()


@pytest.mark.parametrize("changes", ODD.values(), ids=ODD)
def test_each_tap_stops_the_network_at_its_place(changes: dict[str, Any]) -> None:
    """Every enumerated tap exists and fires, in the enumerated order, and no other does.

    Maps are left out of the order: one is known with its key, before the value that precedes it in the names.
    """
    network = odd_unet(changes)
    args = (torch.zeros(1, 4, 8, 8), torch.zeros(1), torch.zeros(1, 5, 8))
    started: list[nn.Module] = []
    for module in network.modules():
        module.register_forward_pre_hook(lambda module, args: started.append(module))
    counts = []
    for tap in names(network.config):
        started.clear()
        run([tap], *args, network=network)
        if not tap.endswith("-map"):
            counts.append(len(started))
    assert counts == sorted(counts)
    for site, module_type in [
        ("vit-out", Transformer2DModel),
        ("ffn-inner", FeedForward),
        ("res-out", ResnetBlock2D),
    ]:
        modules = sum(isinstance(module, module_type) for module in network.modules())
        assert sum(tap.endswith(site) for tap in names(network.config)) == modules


def test_nothing_runs_after_the_last_tap() -> None:
    network = tiny_unet()
    started: list[str] = []
    handles = [
        module.register_forward_pre_hook(lambda module, args, name=name: started.append(name))
        for name, module in network.named_modules()
    ]
    try:
        run(["mid-vit-block0-cross-q", "unet-after-conv-in"])
    finally:
        for handle in handles:
            handle.remove()
    assert started[-1] == "mid_block.attentions.0.transformer_blocks.0.attn2.to_q"
    assert "conv_in" in started and not any(name.startswith("up_blocks") for name in started)


def test_stopping_frees_the_activations() -> None:
    """The exception that leaves the network must not keep its frames, and so gigabytes, alive."""
    alive: list[weakref.ref[Tensor]] = []
    network = tiny_unet()
    watch = network.down_blocks[0].register_forward_hook(
        lambda module, args, output: alive.append(weakref.ref(output[0]))
    )
    gc.disable()
    try:
        run("mid-vit-out")
        assert [ref() for ref in alive] == [None]
    finally:
        gc.enable()
        watch.remove()


def test_non_square_tokens_are_folded_by_rows() -> None:
    """h = w must not be assumed. sd15-tiny's attention modules give proj_out(last block) + their input."""
    unit = "down-level0-repeat0"
    taps = [f"{unit}-res-out", f"{unit}-vit-block0-out", f"{unit}-vit-out"]
    found = run(taps, *inputs(size=(8, 24)))
    before, block, after = (found[tap] for tap in taps)
    assert block.shape == (1, 16, 8, 24) and block.is_contiguous()
    with torch.no_grad():
        again = tiny_unet().down_blocks[0].attentions[0].proj_out(block) + before
    assert distance(again, after) < 1e-6


def test_images_of_a_batch_are_independent() -> None:
    latents, timestep, text = inputs(batch=3)
    taps = names(unet_config("sd15-tiny"))
    together = run(taps, latents, timestep, text)
    for image in range(3):
        alone = run(taps, latents[image : image + 1], timestep, text[image : image + 1])
        assert max(distance(together[tap][image : image + 1], alone[tap]) for tap in taps) < 1e-5


def test_maps_leave_the_network_alone() -> None:
    """Asking for an attention map neither changes a processor nor a bit of what the network computes."""
    network = tiny_unet()
    processors = dict(network.attn_processors)
    maps = [tap for tap in names(network.config) if tap.endswith("-map")]
    plain, beside = run("unet-out"), run(["unet-out", *maps])
    assert torch.equal(plain["unet-out"], beside["unet-out"])
    assert all(network.attn_processors[name] is processor for name, processor in processors.items())
    assert torch.allclose(beside[MAP].sum(-1), torch.ones(1, 4, 64))


def test_features_have_no_history() -> None:
    """Of a call that keeps gradients, too: features that hold on to their graph hold gigabytes."""
    network = UNet2DConditionModel.from_pretrained(GOLDEN / "sd15-tiny" / "unet")
    taps = [MAP, f"{MAP}-pooled2", "mid-vit-block0-self-q", "mid-vit-out"]
    found = Recorder(network, taps).run(lambda: network(*inputs()))
    assert not any(value.requires_grad for value in found.values())


def test_large_map_is_refused_with_its_size() -> None:
    network = tiny_unet()
    recorder = Recorder(network, [MAP], max_map_bytes=4 * 2 * 4 * 64 * 64 - 1)
    latents, timestep, text = inputs(batch=2)
    message = (
        rf"tap {MAP}: 2 images x 4 heads x 64 x 64 tokens in float32 are 0\.00 GiB, more than the 0\.00 GiB"
    )
    with pytest.raises(ValueError, match=message):
        recorder.run(lambda: network(latents, timestep, text))
    assert hooks(network) == 0
    assert recorder.run(lambda: network(latents[:1], timestep, text[:1]))[MAP].shape == (1, 4, 64, 64)


def test_half_precision_is_kept() -> None:
    network = UNet2DConditionModel.from_pretrained(GOLDEN / "sd15-tiny" / "unet", torch_dtype=torch.bfloat16)
    taps = [MAP, "down-level0-repeat1-vit-block0-self-q", "mid-vit-out"]
    found = record(SimpleNamespace(unet=network), *inputs(), taps)
    assert {value.dtype for value in found.values()} == {torch.bfloat16}
    exact = run(taps)
    assert all(distance(found[tap].float(), exact[tap]) < 0.05 for tap in taps)


def test_recorder_is_reusable_and_leaves_no_hooks() -> None:
    network = tiny_unet()
    recorder = Recorder(network, ["practical", "unet-out"])
    latents, timestep, text = inputs(batch=2)
    with torch.no_grad():
        first = recorder.run(lambda: network(latents, timestep, text))
        smaller = recorder.run(lambda: network(latents[:1, :, :, :4], timestep, text[:1]))
        again = recorder.run(lambda: network(latents, timestep, text))
    assert list(first) == recorder.taps
    assert smaller["unet-out"].shape == (1, 4, 8, 4)
    assert all(torch.equal(first[tap], again[tap]) for tap in recorder.taps)
    assert hooks(network) == 0


def test_hooks_are_removed_when_the_forward_raises() -> None:
    network = tiny_unet()
    latents, timestep, text = inputs()
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        Recorder(network, "legacy").run(lambda: network(latents, timestep, text[..., :5]))
    assert hooks(network) == 0


def test_a_call_without_the_network_is_told() -> None:
    with pytest.raises(
        RuntimeError, match="4 of 4 taps did not fire, first up-level0-upsampler-out: the call ran to"
    ):
        Recorder(tiny_unet(), "legacy").run(lambda: None)


def test_features_are_copies() -> None:
    """Neither the network (adapter residuals are added in place) nor the caller changes what was recorded."""
    latents, timestep, text = inputs()
    found = run(["unet-in"], latents, timestep, text)["unet-in"]
    before = latents.clone()
    latents.zero_()
    assert torch.equal(found, before)


def test_adapters_injected_after_the_recorder_count() -> None:
    """A hook that was put on the layer before a LoRA wrapped it would miss what the LoRA adds."""
    peft = pytest.importorskip("peft")
    network = UNet2DConditionModel.from_pretrained(GOLDEN / "sd15-tiny" / "unet").eval()
    taps = ["mid-vit-block0-self-q", "mid-vit-block0-self-map", "mid-vit-block0-self-k"]
    recorder, args = Recorder(network, taps), inputs(size=(16, 16))
    with torch.no_grad():
        plain = recorder.run(lambda: network(*args))
        network.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False))
        adapted = recorder.run(lambda: network(*args))
        network.disable_adapters()
        off = recorder.run(lambda: network(*args))
    assert all(distance(adapted[tap], plain[tap]) > 1e-3 for tap in taps)
    weights = network.mid_block.attentions[0].transformer_blocks[0].attn1.to_q
    assert "lora_A" in dict(weights.named_children())
    assert all(torch.equal(off[tap], plain[tap]) for tap in taps)


def meta_inputs(size: tuple[int, int], tokens: int = 77) -> Callable[[Any], dict[str, Any]]:
    def inputs(network: Any) -> dict[str, Any]:
        config = network.config
        text = {"prompt_embeds": torch.zeros(1, tokens, config.cross_attention_dim)}
        if config.addition_embed_type == "text_time":
            pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
            text["pooled_prompt_embeds"] = torch.zeros(1, pooled)
        family = families.for_network(network)
        return family.inputs(network, torch.zeros(1, 4, *size), torch.zeros(()), text)

    return inputs


@pytest.mark.parametrize(("file", "model"), [("dev.sd15.all", "sd15-tiny"), ("dev.sdxl.all", "sdxl-tiny")])
def test_shapes_of_the_reference(file: str, model: str) -> None:
    want = {tap: tuple(value.shape[1:]) for tap, value in expected(file).items()}
    assert shapes(UNet2DConditionModel, unet_config(model), list(want), meta_inputs((8, 8))) == want


def test_shapes_at_sdxl_size_without_weights() -> None:
    """The full network, non-square; maps far beyond what may be recorded are listed all the same."""
    start = time.monotonic()
    config = {**unet_config("sdxl-tiny"), **SDXL_SIZE}
    pooled = "down-level1-repeat0-vit-block0-self-map-pooled4"
    found = shapes(UNet2DConditionModel, config, [*names(config), pooled], meta_inputs((128, 96)))
    assert time.monotonic() - start < 10
    assert len(found) == 612 + 1
    assert found["up-level2-repeat2-res-out"] == (320, 128, 96)
    assert found["up-level0-repeat0-vit-block7-out"] == (1280, 32, 24)
    assert found["down-level1-repeat0-vit-block0-self-map"] == (10, 64 * 48, 64 * 48)
    assert found["down-level1-repeat0-vit-block0-cross-map"] == (10, 64 * 48, 77)
    assert found[pooled] == (10, 16 * 12, 16 * 12)


def test_shapes_name_a_wrong_tap() -> None:
    with pytest.raises(ValueError, match="'unet-on' is no tap of this network; nearest: unet-in"):
        shapes(UNet2DConditionModel, unet_config("sd15-tiny"), ["unet-on"], meta_inputs((8, 8)))
