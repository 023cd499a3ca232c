"""A LoRA in training: factors beside the UNet's layers, and the file they end in.

PEFT's layers compute W x + alpha / rank * B (A x), where a convolution's A has W's kernel, stride and padding, and its
B is 1 x 1 (LoCon). The file has kohya's form, `lora_unet_PATH.lora_down.weight`, `.lora_up.weight` and `.alpha`: the
one form in which every reader finds alpha with its layer.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from safetensors.torch import save
from torch import Tensor, nn

from schemas.model import Dtype

Layers = Literal["locon", "linear"]
_BLOCKS = ("down_blocks.", "mid_block.", "up_blocks.")
_KINDS: dict[Layers, tuple[type[nn.Module], ...]] = {
    "locon": (nn.Linear, nn.Conv2d),
    "linear": (nn.Linear,),
}
_ADAPTER = "default"


def default_rank(config: Mapping[str, Any]) -> int:
    """A fifth of the narrowest level's channels of a UNet's config, from 4 to 64; 64 for Stable Diffusion and SDXL."""
    return min(64, max(4, min(config["block_out_channels"]) // 5))


def sites(network: nn.Module, layers: Layers) -> list[str]:
    """Paths of the layers of a UNet's blocks that get factors, on any device, `meta` as well."""
    return [
        path
        for path, module in network.named_modules()
        if path.startswith(_BLOCKS) and isinstance(module, _KINDS[layers])
    ]


def count_parameters(network: nn.Module, layers: Layers, rank: int) -> int:
    """Trained numbers in all."""
    weights: list[Any] = [network.get_submodule(path).weight for path in sites(network, layers)]
    return sum(rank * (weight[0].numel() + len(weight)) for weight in weights)


def add_factors(
    network: Any, *, layers: Layers, rank: int, alpha: float, seed: int
) -> dict[str, nn.Parameter]:
    """Put factors beside the layers of a frozen UNet of diffusers, which changes it in place.

    A is random by `seed`, the same on every device; B is zero, so that the network computes what it did before (Hu et
    al. 2021, section 4.1).

    Returns:
        {"PATH.lora_down": A [rank, in, ...], "PATH.lora_up": B [out, rank, ...]}, float32, all that is trained.
    """
    paths = sites(network, layers)
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=paths)  # type: ignore[arg-type]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network.add_adapter(config, _ADAPTER)
    factors: dict[str, nn.Parameter] = {}
    for path in paths:
        layer = network.get_submodule(path)
        assert isinstance(layer, LoraLayer), path
        for role, part in (("down", layer.lora_A), ("up", layer.lora_B)):
            factor: Any = part[_ADAPTER].weight
            factor.data = factor.data.float()  # PEFT gives them the layer's dtype, too coarse for small steps
            factors[f"{path}.lora_{role}"] = factor
    assert len(factors) == sum(weight.requires_grad for weight in network.parameters())
    return factors


@contextmanager
def without_factors(network: Any) -> Iterator[None]:
    """The network computes what it did before `add_factors` while the context is open."""
    network.disable_adapters()
    try:
        yield
    finally:
        network.enable_adapters()


def to_file(
    factors: Mapping[str, Tensor], alpha: float, about: Mapping[str, Any], dtype: Dtype = "float32"
) -> bytes:
    """A safetensors file of factors as `add_factors` names them; the same bytes for the same values.

    Args:
        factors: float32.
        alpha: of every layer.
        about: what else the file says of itself, as JSON under `gatehouse` in its metadata. There is only this one
            key, since safetensors writes several in any order.
        dtype: of the file's factors.
    """
    tensors = {}
    for name, value in factors.items():
        path, _, role = name.rpartition(".")
        key = f"lora_unet_{path.replace('.', '_')}"
        tensors[f"{key}.{role}.weight"] = value.detach().cpu().to(getattr(torch, dtype)).contiguous()
        tensors[f"{key}.alpha"] = torch.tensor(float(alpha))
    return save(tensors, {"gatehouse": json.dumps(dict(about))})
