"""LoRA files written by hand, in every spelling, and the changes that they stand for, worked out in another way."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

Delta = NDArray[np.float64]
RANK, ALPHA = 4, 3.0

ATTENTION = "down_blocks.0.attentions.0.transformer_blocks.0.attn1"
LINEARS = (
    f"{ATTENTION}.to_q",
    f"{ATTENTION}.to_out.0",
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_k",
    "up_blocks.1.attentions.2.transformer_blocks.0.ff.net.0.proj",
)
"""Of the UNet of Stable Diffusion, in every file."""
CONVOLUTIONS = (
    "mid_block.attentions.0.proj_in",  # 1 x 1
    "up_blocks.1.resnets.0.conv1",
    "down_blocks.1.resnets.0.conv_shortcut",  # 1 x 1
    "down_blocks.0.downsamplers.0.conv",
)
ENCODER = ("encoder.layers.0.self_attn.q_proj", "encoder.layers.1.mlp.fc1")
"""Of its text encoder."""


@dataclass
class Written:
    """What goes into a file, and what it means."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] | None = None
    """Of `adapter_config.json`."""
    unet: dict[str, Delta] = field(default_factory=dict)
    """Module -> change of its weight at scale 1."""
    encoder: dict[str, Delta] = field(default_factory=dict)

    def save(self, path: Path) -> Path:
        """Write the file, and the config beside it."""
        save_file(self.tensors, path, metadata={"format": "pt", **self.metadata})
        if self.config is not None:
            path.with_name("adapter_config.json").write_text(json.dumps(self.config))
        return path


class Random:
    """Matrices that never come again."""

    def __init__(self, seed: int = 0) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator) * 0.3


def weight(root: nn.Module, path: str) -> Tensor:
    """Of a layer; a text encoder's with or without the level `text_model`."""
    names = dict(root.named_modules())
    found: Any = names.get(path) or names[f"text_model.{path}"]
    return found.weight


def lora(written: Written, random: Random, shape: torch.Size, down: str, up: str) -> Delta:
    """A pair of factors, and their product; a convolution's `up` is 1 x 1."""
    a = random(RANK, *shape[1:])
    b = random(shape[0], RANK, *(1 for _ in shape[2:]))
    written.tensors |= {down: a, up: b}
    return np.tensordot(double(b).reshape(shape[0], RANK), double(a), 1)


def diffusers_new(unet: nn.Module, encoder: nn.Module) -> Written:
    """As `save_lora_weights` writes: alpha in the metadata, one layer with its own."""
    made, random = Written(), Random(1)
    for path in (*LINEARS, *CONVOLUTIONS):
        shape = weight(unet, path).shape
        product = lora(made, random, shape, f"unet.{path}.lora_A.weight", f"unet.{path}.lora_B.weight")
        made.unet[path] = product * (7.0 if path == LINEARS[0] else ALPHA) / RANK
    for path in ENCODER:
        key = f"text_encoder.text_model.{path}"
        product = lora(
            made, random, weight(encoder, path).shape, f"{key}.lora_A.weight", f"{key}.lora_B.weight"
        )
        made.encoder[path] = product * 2 / np.sqrt(RANK)
    about = {
        "unet.r": RANK,
        "unet.lora_alpha": ALPHA,
        "unet.alpha_pattern": {LINEARS[0]: 7.0},
        "unet.target_modules": [*LINEARS, *CONVOLUTIONS],
        "text_encoder.r": RANK,
        "text_encoder.lora_alpha": 2,
        "text_encoder.use_rslora": True,
        "text_encoder.target_modules": [path.split(".", 2)[2] for path in ENCODER],
    }
    made.metadata["lora_adapter_metadata"] = json.dumps(about)
    return made


def diffusers(unet: nn.Module, encoder: nn.Module) -> Written:
    """As diffusers wrote before: no alpha at all."""
    made, random = Written(), Random(2)
    for path in (*LINEARS, *CONVOLUTIONS):
        key = f"unet.{path}.lora"
        made.unet[path] = lora(
            made, random, weight(unet, path).shape, f"{key}.down.weight", f"{key}.up.weight"
        )
    for path in ENCODER:
        key = f"text_encoder.text_model.{path}.lora_linear_layer"
        made.encoder[path] = lora(
            made, random, weight(encoder, path).shape, f"{key}.down.weight", f"{key}.up.weight"
        )
    return made


def diffusers_old(unet: nn.Module, encoder: nn.Module) -> Written:
    """As the first versions wrote: LoRA belonged to attention processors."""
    made, random = Written(), Random(3)
    for path in LINEARS[:3]:
        block, _, layer = path.removesuffix(".0").rpartition(".")
        key = f"unet.{block}.processor.{layer}_lora"
        made.unet[path] = lora(
            made, random, weight(unet, path).shape, f"{key}.down.weight", f"{key}.up.weight"
        )
    key = "text_encoder.text_model.encoder.layers.0.self_attn.to_out_lora"
    path = "encoder.layers.0.self_attn.out_proj"
    made.encoder[path] = lora(
        made, random, weight(encoder, path).shape, f"{key}.down.weight", f"{key}.up.weight"
    )
    return made


def peft(unet: nn.Module, encoder: nn.Module) -> Written:
    """As `PeftModel.save_pretrained` writes: alpha in a file of its own."""
    made, random = (
        Written(config={"r": RANK, "lora_alpha": ALPHA, "alpha_pattern": {"attn1.to_q": 5}}),
        Random(4),
    )
    for path in (*LINEARS, *CONVOLUTIONS):
        key = f"base_model.model.{path}"
        product = lora(made, random, weight(unet, path).shape, f"{key}.lora_A.weight", f"{key}.lora_B.weight")
        made.unet[path] = product * (5.0 if path.endswith("attn1.to_q") else ALPHA) / RANK
    return made


def kohya(unet: nn.Module, encoder: nn.Module) -> Written:
    """Linear layers, alpha of each."""
    return _kohya(unet, encoder, Random(5), LINEARS, _lora)


def locon(unet: nn.Module, encoder: nn.Module) -> Written:
    """Convolutions as well."""
    return _kohya(unet, encoder, Random(6), (*LINEARS, *CONVOLUTIONS), _lora)


def locon_with_core(unet: nn.Module, encoder: nn.Module) -> Written:
    """Convolutions of kernels larger than 1 have a core."""
    return _kohya(unet, encoder, Random(7), (*LINEARS, *CONVOLUTIONS), _lora_with_core)


def loha(unet: nn.Module, encoder: nn.Module) -> Written:
    """Products element by element, convolutions flattened."""
    return _kohya(unet, encoder, Random(8), (*LINEARS, *CONVOLUTIONS), _loha)


def loha_with_core(unet: nn.Module, encoder: nn.Module) -> Written:
    """The same with cores for kernels larger than 1."""
    return _kohya(unet, encoder, Random(9), (*LINEARS, *CONVOLUTIONS), _loha_with_core)


def stability(unet: nn.Module, encoder: nn.Module) -> Written:
    """kohya's with the block names of Stability's code, as for SDXL; here of Stable Diffusion's UNet."""
    names = {
        f"{ATTENTION}.to_q": "input_blocks_1_1_transformer_blocks_0_attn1_to_q",
        "down_blocks.0.downsamplers.0.conv": "input_blocks_3_0_op",
        "down_blocks.1.resnets.0.conv_shortcut": "input_blocks_4_0_skip_connection",
        "down_blocks.1.resnets.1.time_emb_proj": "input_blocks_5_0_emb_layers_1",
        "mid_block.attentions.0.proj_in": "middle_block_1_proj_in",
        "mid_block.resnets.1.conv2": "middle_block_2_out_layers_3",
        "up_blocks.0.upsamplers.0.conv": "output_blocks_2_1_conv",
        "up_blocks.1.attentions.2.transformer_blocks.0.ff.net.0.proj": (
            "output_blocks_5_1_transformer_blocks_0_ff_net_0_proj"
        ),
        "up_blocks.1.upsamplers.0.conv": "output_blocks_5_2_conv",
        "conv_out": "out_2",
    }
    made, random = Written(), Random(10)
    for path, name in names.items():
        made.unet[path] = _lora(made, random, weight(unet, path).shape, f"lora_unet_{name}")
    return made


FORMATS: tuple[Callable[[nn.Module, nn.Module], Written], ...] = (
    diffusers_new,
    diffusers,
    diffusers_old,
    peft,
    kohya,
    locon,
    locon_with_core,
    loha,
    loha_with_core,
    stability,
)

Layer = Callable[[Written, Random, torch.Size, str], Delta]


def _kohya(
    unet: nn.Module, encoder: nn.Module, random: Random, paths: tuple[str, ...], layer: Layer
) -> Written:
    made = Written()
    for path in paths:
        key = f"lora_unet_{path.replace('.', '_')}"
        made.unet[path] = layer(made, random, weight(unet, path).shape, key)
    for path in ENCODER:
        key = f"lora_te_text_model_{path.replace('.', '_')}"
        made.encoder[path] = layer(made, random, weight(encoder, path).shape, key)
    return made


def _lora(written: Written, random: Random, shape: torch.Size, key: str) -> Delta:
    written.tensors[f"{key}.alpha"] = torch.tensor(ALPHA)
    return lora(written, random, shape, f"{key}.lora_down.weight", f"{key}.lora_up.weight") * ALPHA / RANK


def _lora_with_core(written: Written, random: Random, shape: torch.Size, key: str) -> Delta:
    if len(shape) < 4 or shape[2:] == (1, 1):
        return _lora(written, random, shape, key)
    down, core, up = (
        random(RANK, shape[1], 1, 1),
        random(RANK, RANK, *shape[2:]),
        random(shape[0], RANK, 1, 1),
    )
    written.tensors |= {
        f"{key}.alpha": torch.tensor(ALPHA),
        f"{key}.lora_down.weight": down,
        f"{key}.lora_mid.weight": core,
        f"{key}.lora_up.weight": up,
    }
    return _kernel(double(up)[..., 0, 0], double(core), double(down)[..., 0, 0]) * ALPHA / RANK


def _loha(written: Written, random: Random, shape: torch.Size, key: str) -> Delta:
    width = shape[1:].numel()
    factors = [random(shape[0], RANK), random(RANK, width), random(shape[0], RANK), random(RANK, width)]
    for name, factor in zip(("w1_a", "w1_b", "w2_a", "w2_b"), factors, strict=True):
        written.tensors[f"{key}.hada_{name}"] = factor
    written.tensors[f"{key}.alpha"] = torch.tensor(ALPHA)
    first, second, third, fourth = map(double, factors)
    return ((first @ second) * (third @ fourth) * ALPHA / RANK).reshape(shape)


def _loha_with_core(written: Written, random: Random, shape: torch.Size, key: str) -> Delta:
    if len(shape) < 4 or shape[2:] == (1, 1):
        return _loha(written, random, shape, key)
    product = np.ones(shape)
    for n in (1, 2):
        a, b, core = random(RANK, shape[0]), random(RANK, shape[1]), random(RANK, RANK, *shape[2:])
        written.tensors |= {f"{key}.hada_w{n}_a": a, f"{key}.hada_w{n}_b": b, f"{key}.hada_t{n}": core}
        product *= _kernel(double(a).T, double(core), double(b))
    written.tensors[f"{key}.alpha"] = torch.tensor(ALPHA)
    return product * ALPHA / RANK


def _kernel(up: Delta, core: Delta, down: Delta) -> Delta:
    """The kernel that does what three convolutions do one after another, of which only the second is not 1 x 1."""
    kernel = np.empty((len(up), down.shape[1], *core.shape[2:]))
    for row, column in _cells(core.shape[2], core.shape[3]):
        kernel[:, :, row, column] = up @ core[:, :, row, column] @ down
    return kernel


def _cells(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    return ((row, column) for row in range(rows) for column in range(columns))


def double(tensor: Tensor) -> Delta:
    """As float64."""
    return tensor.double().numpy()


def write_kohya(path: Path, unet: nn.Module, seed: int = 0) -> Path:
    """A file of rank 4 that changes the queries of the first attention, for tests that need any LoRA."""
    name = next(name for name, _ in unet.named_modules() if name.endswith("attn1.to_q"))
    layer: Any = unet.get_submodule(name)
    key = "lora_unet_" + name.replace(".", "_")
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        f"{key}.lora_down.weight": torch.randn(4, layer.in_features, generator=generator),
        f"{key}.lora_up.weight": torch.randn(layer.out_features, 4, generator=generator),
        f"{key}.alpha": torch.tensor(2.0),
    }
    save_file(tensors, path)
    return path
