"""LoRA beside weights merged by hand and beside stock diffusers and PEFT, switched in any order; what is refused."""

from __future__ import annotations

import copy
import gc
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from diffusers import StableDiffusionPipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline import families
from pipeline.backbone import Backbone
from pipeline.families.stable_diffusion import StableDiffusion
from pipeline.taps import Recorder
from pipeline.techniques.lora import Lora
from schemas import techniques as specs
from tests import loras

TINY = Path(__file__).parents[2] / "data" / "golden" / "sd15-tiny"
TAPS = [
    "down-level0-repeat0-vit-block0-self-q",
    "mid-vit-block0-cross-map",
    "up-level1-repeat0-res-out",
    "up-level3-repeat2-vit-out",
    "unet-out",
]
SCALE = 0.6

Make = Callable[[nn.Module, nn.Module], loras.Written]


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return families.load(TINY, dtype=torch.float32, device="cpu")


@pytest.fixture(scope="module")
def files(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file of every format."""
    found = {}
    for make in loras.FORMATS:
        folder = tmp_path_factory.mktemp(make.__name__)
        found[make.__name__] = written(make, backbone).save(folder / "weights.safetensors")
    return found


def written(make: Make, backbone: Backbone) -> loras.Written:
    return make(backbone.network, backbone.encoders["text_encoder"])


def lora(path: Path, backbone: Backbone, scale: float = SCALE) -> Lora:
    return Lora(specs.Lora(type="lora", source=str(path), scale=scale), backbone)


def features(backbone: Backbone) -> dict[str, Tensor]:
    """Text and taps of two pictures."""
    text = backbone.encode_text(["a duck", "a tree"])
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    inputs = backbone.inputs(backbone.network, latents, torch.tensor(51), text)
    return {**text, **Recorder(backbone.network, TAPS).run(lambda: backbone.predict(inputs))}


def by_hand(backbone: Backbone, *changes: tuple[loras.Written, float]) -> dict[str, Tensor]:
    """The same with changes added to a copy's weights."""
    merged = copy.copy(backbone)
    merged.network = copy.deepcopy(backbone.network)
    merged.encoders = copy.deepcopy(backbone.encoders)
    for made, scale in changes:
        for root, deltas in ((merged.network, made.unet), (merged.encoders["text_encoder"], made.encoder)):
            for path, delta in deltas.items():
                weight = loras.weight(root, path)
                weight.copy_(weight.double() + scale * torch.from_numpy(delta).reshape(weight.shape))
    return features(merged)


def error(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest relative difference of a tensor."""
    return max(float((found[key] - expected[key]).norm() / expected[key].norm()) for key in expected)


def attached(backbone: Backbone, *techniques: Lora) -> dict[str, Tensor]:
    for technique in techniques:
        technique.attach()
    found = features(backbone)
    for technique in reversed(techniques):
        technique.detach()
    return found


def state(backbone: Backbone) -> dict[str, bytes]:
    """All weights, byte for byte."""
    roots = {"unet": backbone.network, **backbone.encoders}
    return {
        f"{part}.{name}": value.view(torch.uint8).numpy().tobytes()
        for part, root in roots.items()
        for name, value in root.state_dict().items()
    }


@pytest.mark.parametrize("make", loras.FORMATS, ids=lambda make: make.__name__)
def test_every_format_is_merged_by_its_formula(
    make: Make, backbone: Backbone, files: dict[str, Path]
) -> None:
    before = features(backbone)
    made = written(make, backbone)
    found = attached(backbone, lora(files[make.__name__], backbone))
    assert error(found, by_hand(backbone, (made, SCALE))) < 1e-5
    assert error(found, before) > 0.01
    if made.encoder:
        assert error({"": found["prompt_embeds"]}, {"": before["prompt_embeds"]}) > 0.01
    assert all(torch.equal(value, before[key]) for key, value in features(backbone).items())


@pytest.mark.parametrize("name", ["diffusers_new", "diffusers", "kohya", "locon"])
def test_the_same_as_stock_diffusers(name: str, backbone: Backbone, files: dict[str, Path]) -> None:
    """Formats that its loader reads too, the network alone: of these text encoders it leaves layers out."""
    own = features(backbone)["prompt_embeds"]
    stock = StableDiffusionPipeline.from_pretrained(TINY, safety_checker=None)
    state_dict, alphas, metadata = stock.lora_state_dict(
        files[name].parent,
        weight_name=files[name].name,
        unet_config=stock.unet.config,
        return_lora_metadata=True,
    )
    stock.load_lora_into_unet(state_dict, alphas, stock.unet, adapter_name="one", metadata=metadata)
    stock.unet.set_adapters("one", SCALE)
    technique = lora(files[name], backbone)
    technique.attach()
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    inputs = backbone.inputs(backbone.network, latents, torch.tensor(51), {"prompt_embeds": own})
    found = backbone.predict(inputs)
    technique.detach()
    with torch.no_grad():
        expected = stock.unet(**inputs).sample
    assert float((found - expected).norm() / expected.norm()) < 1e-5


def test_loha_is_that_of_peft(backbone: Backbone, files: dict[str, Path]) -> None:
    """Its linear layers; PEFT has one kind of convolution a file."""
    made = written(loras.loha, backbone)
    config = peft.LoHaConfig(r=loras.RANK, alpha=int(loras.ALPHA), target_modules=list(loras.LINEARS))
    network = peft.inject_adapter_in_model(config, copy.deepcopy(backbone.network))
    for path in loras.LINEARS:
        layer: Any = network.get_submodule(path)
        for role in ("w1_a", "w1_b", "w2_a", "w2_b"):
            factor = made.tensors[f"lora_unet_{path.replace('.', '_')}.hada_{role}"]
            getattr(layer, f"hada_{role}")["default"].data.copy_(factor)
        expected = layer.get_delta_weight("default")
        delta = torch.zeros_like(expected)
        lora(files["loha"], backbone).changes["network", path].add_to(delta, 1.0)
        torch.testing.assert_close(delta, expected)


def test_several_add_up(backbone: Backbone, files: dict[str, Path]) -> None:
    first, second = written(loras.loha, backbone), written(loras.kohya, backbone)
    found = attached(backbone, lora(files["loha"], backbone, 0.7), lora(files["kohya"], backbone, -0.4))
    assert error(found, by_hand(backbone, (first, 0.7), (second, -0.4))) < 1e-5


def test_the_same_one_twice_counts_twice(backbone: Backbone, files: dict[str, Path]) -> None:
    technique = lora(files["kohya"], backbone, 0.3)
    twice = attached(backbone, technique, technique)
    assert error(twice, attached(backbone, lora(files["kohya"], backbone, 0.6))) < 1e-5


@settings(max_examples=25, deadline=None)
@given(switches=st.lists(st.integers(0, 2), max_size=12))
def test_switching_leaves_no_trace(switches: list[int], backbone: Backbone, files: dict[str, Path]) -> None:
    """Whatever was attached and detached before, the weights are those of what is attached now, in the same bytes."""
    techniques = [lora(files[name], backbone) for name in ("loha", "kohya", "locon")]
    before = state(backbone)
    active: list[int] = []
    for place in switches:
        if place in active:
            techniques[place].detach()
            active.remove(place)
        else:
            techniques[place].attach()
            active.append(place)
    switched = state(backbone)
    for place in active:
        techniques[place].detach()
    assert state(backbone) == before
    for place in sorted(active):
        techniques[place].attach()
    assert state(backbone) == switched
    for place in active:
        techniques[place].detach()
    assert (switched == before) == (not active)


def test_in_inference_mode(backbone: Backbone, files: dict[str, Path]) -> None:
    """Where an engine switches."""
    before = state(backbone)
    technique = lora(files["kohya"], backbone)
    with torch.inference_mode():
        technique.attach()
    found = features(backbone)
    assert not any(one.is_inference() for one in backbone.network.parameters())
    with torch.inference_mode():
        technique.detach()
    assert error(found, by_hand(backbone, (written(loras.kohya, backbone), SCALE))) < 1e-5
    assert state(backbone) == before


def test_the_sum_is_rounded_once(files: dict[str, Path]) -> None:
    """In bfloat16 the weights are those of a merged float32 checkpoint, as far as the backbone's own W goes."""
    backbone = families.load(TINY, dtype=torch.bfloat16, device="cpu")
    before = state(backbone)
    made = written(loras.kohya, backbone)
    path = loras.LINEARS[0]
    own = loras.weight(backbone.network, path).clone()
    technique = lora(files["kohya"], backbone, 0.01)
    technique.attach()
    expected = own.double() + 0.01 * torch.from_numpy(made.unet[path])
    assert torch.equal(loras.weight(backbone.network, path), expected.float().bfloat16())
    technique.detach()
    assert state(backbone) == before


def test_a_file_is_read_once(backbone: Backbone, files: dict[str, Path]) -> None:
    first, second = lora(files["loha"], backbone, 0.1), lora(files["loha"], backbone, 0.9)
    assert first.changes is second.changes


def test_without_text_encoders(files: dict[str, Path]) -> None:
    """They are dropped once all prompts are encoded, also while a file that changes them is in force."""
    backbone = families.load(TINY, dtype=torch.float32, device="cpu")
    before = state(backbone)
    technique = lora(files["kohya"], backbone)
    technique.attach()
    backbone.drop_text_encoders()
    gc.collect()
    assert len(technique._merger._own) == len(loras.LINEARS)  # nothing of the encoders stays in memory
    technique.detach()
    assert attached_unet(backbone, technique) != state(backbone)
    assert state(backbone) == {name: value for name, value in before.items() if name.startswith("unet.")}
    lora(files["peft"], backbone).attach()  # names no encoder


def attached_unet(backbone: Backbone, technique: Lora) -> dict[str, bytes]:
    technique.attach()
    found = state(backbone)
    technique.detach()
    return found


def check(path: Path, folder: Path = TINY) -> dict[str, str]:
    return Lora.check(specs.Lora(type="lora", source=str(path)), StableDiffusion, folder)


@pytest.mark.parametrize("make", loras.FORMATS, ids=lambda make: make.__name__)
def test_check_needs_configs_only(make: Make, files: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(TINY, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    path = files[make.__name__]
    expected = {"lora/weights": hashlib.sha256(path.read_bytes()).hexdigest()}
    beside = path.with_name("adapter_config.json")
    if beside.exists():
        expected["lora/adapter_config.json"] = hashlib.sha256(beside.read_bytes()).hexdigest()
    assert check(path, tmp_path / "bare") == expected


def test_check_refuses_one_of_another_model(backbone: Backbone, tmp_path: Path) -> None:
    """By what its trainer says, or else by the text that its UNet reads."""
    random, made = loras.Random(), loras.Written()
    block = "down_blocks_1_attentions_0_transformer_blocks_{}_attn2_to_k"
    for number in (0, 1):
        key = f"lora_unet_{block.format(number)}"
        loras.lora(made, random, torch.Size([640, 2048]), f"{key}.lora_down.weight", f"{key}.lora_up.weight")
    path = made.save(tmp_path / "big.safetensors")
    message = (
        rf"lora '{path}' was made for SDXL and does not fit the backbone, a StableDiffusionImg2ImgPipeline: of its 2"
        rf" layers 1 are not in the backbone, such as '{block.format(1)}'; 1 have other shapes: '{block.format(0)}'"
        r" changes \[640, 2048\], the backbone has \[32, 32\]\. Take one that was trained for this backbone"
    )
    with pytest.raises(ValueError, match=message):
        check(path)
    with pytest.raises(ValueError, match="does not fit the backbone, a StableDiffusion:"):
        lora(path, backbone)
    made.metadata["ss_base_model_version"] = "sdxl_base_v1-0"
    made.save(path)
    with pytest.raises(ValueError, match="was made for 'sdxl_base_v1-0' and does not fit"):
        check(path)


def test_check_refuses_a_layer_in_two_spellings(tmp_path: Path) -> None:
    random, made = loras.Random(), loras.Written()
    for key in ("unet.mid_block.attentions.0.proj_in", "lora_unet_middle_block_1_proj_in"):
        loras.lora(
            made, random, torch.Size([32, 32, 1, 1]), f"{key}.lora_down.weight", f"{key}.lora_up.weight"
        )
    with pytest.raises(ValueError, match=r"names the layer 'mid_block\.attentions\.0\.proj_in' twice"):
        check(made.save(tmp_path / "weights.safetensors"))


def test_check_refuses_a_text_encoder_that_is_not_there(tmp_path: Path) -> None:
    random, made = loras.Random(), loras.Written()
    key = "lora_te2_text_model_encoder_layers_0_mlp_fc1"
    loras.lora(made, random, torch.Size([32, 32]), f"{key}.lora_down.weight", f"{key}.lora_up.weight")
    with pytest.raises(ValueError, match=r"such as 'text_encoder_2\.text_model_encoder_layers_0_mlp_fc1'"):
        check(made.save(tmp_path / "weights.safetensors"))


def test_check_refuses_other_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"lora '.*weights\.ckpt': weights are read from \.safetensors"):
        check(tmp_path / "weights.ckpt")
    with pytest.raises(ValueError, match="no such file"):
        check(tmp_path / "weights.safetensors")
