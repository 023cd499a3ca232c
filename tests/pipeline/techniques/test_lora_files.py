"""Headers of LoRA files: what is refused, and where alpha comes from."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pipeline.techniques.lora_files import LoraFile, Site

LAYER = "lora_unet_mid_block_attentions_0_proj_in"
DOWN, UP = torch.ones(2, 32), torch.ones(32, 2)


def header(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> LoraFile:
    save_file({key: value.clone() for key, value in tensors.items()}, path / "some.safetensors", metadata)
    return LoraFile(path / "some.safetensors", "./some.safetensors")


@pytest.mark.parametrize(
    "keys, message",
    [
        (
            {f"{LAYER}.lora_down.weight": DOWN, f"{LAYER}.lora_up.weight": UP, f"{LAYER}.dora_scale": UP},
            r"has DoRA, such as '.*\.dora_scale'; supported are LoRA, LoCon and LoHa",
        ),
        (
            {f"{LAYER}.lokr_w1": DOWN, f"{LAYER}.lokr_w2": DOWN},
            r"has LoKr, such as '.*w1', '.*w2'; supported",
        ),
        ({f"unet.x.lora_{end}": UP for end in ("A.weight", "B.weight", "B.bias")}, "has changes of biases"),
        (
            {f"layer{number}.weight": UP for number in range(5)},
            "keys of an unknown format.* and 2 more; supp",
        ),
        (
            {f"{LAYER}.lora_down.weight": DOWN},
            r"the layer 'mid_block_.*' has only '.*down\.weight', and a fac",
        ),
        ({f"{LAYER}.hada_w1_a": UP, f"{LAYER}.alpha": UP}, "factor without its counterpart"),
        ({}, "is empty"),
    ],
)
def test_refuses(keys: dict[str, Tensor], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"lora '\./some\.safetensors'.*{message}"):
        header(tmp_path, keys)


def test_refuses_a_pickle(tmp_path: Path) -> None:
    torch.save({"a": UP}, tmp_path / "some.safetensors")
    with pytest.raises(ValueError, match=r"'\./some' is no safetensors file .*pickles, which can run code"):
        LoraFile(tmp_path / "some.safetensors", "./some")


def test_peft_without_its_config(tmp_path: Path) -> None:
    keys = {f"base_model.model.mid_block.attentions.0.proj_in.lora_{end}.weight": UP for end in "AB"}
    with pytest.raises(
        ValueError, match=r"states alpha in adapter_config\.json only, and there is none beside"
    ):
        header(tmp_path, keys)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 16, "r": 32}))
    (change,) = header(tmp_path, keys).changes("cpu").values()
    assert change.scale == 16 / 32


def test_loha_of_peft(tmp_path: Path) -> None:
    """Where alpha has another name."""
    keys = {f"base_model.model.x.hada_{name}": UP for name in ("w1_a", "w2_a")}
    keys |= {f"base_model.model.x.hada_{name}": DOWN for name in ("w1_b", "w2_b")}
    (tmp_path / "adapter_config.json").write_text(json.dumps({"alpha": 6, "r": 2}))
    file = header(tmp_path, keys)
    assert file.changes("meta")[Site("network", "x")].scale == 3.0
    assert file.config_path == tmp_path / "adapter_config.json"


@pytest.mark.parametrize(
    "metadata, scale",
    [
        ({}, 1.0),
        ({"unet.lora_alpha": 6, "unet.r": 2, "text_encoder.lora_alpha": 100}, 3.0),
        ({"lora_alpha": 6, "use_rslora": True}, 6 / 2**0.5),
        ({"transformer.lora_alpha": 6, "transformer.alpha_pattern": {"to_k": 9, "block.to_q": 1}}, 0.5),
        ({"unet.lora_alpha": 6, "unet.alpha_pattern": {"lock.to_q": 1}}, 3.0),  # whole names only
        ({"text_encoder.lora_alpha": 100}, 1.0),
    ],
)
def test_alpha_of_the_metadata(metadata: dict[str, object], scale: float, tmp_path: Path) -> None:
    keys = {"unet.some.block.to_q.lora_A.weight": DOWN, "unet.some.block.to_q.lora_B.weight": UP}
    file = header(tmp_path, keys, {"lora_adapter_metadata": json.dumps(metadata)} if metadata else None)
    assert file.changes("meta")[Site("network", "some.block.to_q")].scale == pytest.approx(scale)


@pytest.mark.parametrize(
    "prefix, part",
    [
        ("unet.", "network"),
        ("transformer.", "network"),
        ("", "network"),
        ("text_encoder_2.", "text_encoder_2"),
        ("lora_unet_", "network"),
        ("lora_te_", "text_encoder"),
        ("lora_te1_", "text_encoder"),
        ("lora_te2_", "text_encoder_2"),
        ("lora_te3_", "text_encoder_3"),
    ],
)
@pytest.mark.parametrize("ends", ["lora_A.weight lora_B.weight", "lora_A.name.weight lora_B.name.weight"])
def test_parts(prefix: str, part: str, ends: str, tmp_path: Path) -> None:
    keys = {f"{prefix}mlp_fc1.{end}": UP for end in re.split(" ", ends)}
    assert header(tmp_path, keys).sites == [Site(part, "mlp_fc1")]
