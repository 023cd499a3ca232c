"""Where and how training computes: on a GPU where there is one, in bfloat16 with float32 weights."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def training_device() -> torch.device:
    """A GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def to_device(network: Network) -> Network:
    """Move a network there. Channels last is what bfloat16 convolutions are fast in: three times on a CPU."""
    return network.to(training_device(), memory_format=torch.channels_last)  # type: ignore[call-overload]


def autocast(device: torch.device) -> torch.autocast:
    """Compute in bfloat16 while the context is open."""
    return torch.autocast(device.type, torch.bfloat16)
