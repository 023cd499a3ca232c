"""Where and how training computes: on a GPU if there is one; float32 weights, and bfloat16 where that is fast."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

Network = TypeVar("Network", bound=nn.Module)


def training_device() -> torch.device:
    """A GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def to_device(network: Network) -> Network:
    """Move a network there. Channels last is what bfloat16 convolutions are fast in: three times on a CPU."""
    return network.to(training_device(), memory_format=torch.channels_last)  # type: ignore[call-overload]


def normal(shape: torch.Size, generator: torch.Generator, device: torch.device) -> Tensor:
    """Normal float32 numbers on a device, which draws them itself: a CPU would take longer than a GPU's whole step.

    Args:
        shape: of the result.
        generator: on the CPU; all else that is random in a step comes from it.
        device: where the numbers are needed.
    """
    if device.type == "cpu":
        return torch.randn(shape, generator=generator)
    seed = int(torch.randint(1 << 62, (), generator=generator))
    return torch.randn(shape, generator=torch.Generator(device).manual_seed(seed), device=device)


def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 on a GPU and on a CPU with AVX-512; float32 on others, whose bfloat16 convolutions are no kernels of
    their own: a step of the VAE took 15 s so."""
    fast = device.type != "cpu" or "AVX512" in torch.backends.cpu.get_cpu_capability()
    return torch.bfloat16 if fast else torch.float32


def autocast(device: torch.device) -> torch.autocast:
    """Compute in `fast_dtype` while the context is open."""
    return torch.autocast(device.type, torch.bfloat16, enabled=fast_dtype(device) == torch.bfloat16)
