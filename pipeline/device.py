"""What computes: its name for the record, its memory for the plan."""

from __future__ import annotations

import platform

import psutil
import torch


def choose(wanted: str) -> str:
    """`cpu` or `cuda` for this process; `auto` takes a GPU where there is one."""
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return wanted


def name(device: str) -> str:
    """Model of a device; values are the same bytes only where this, the batch size and the libraries are the same."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"cpu {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def free_bytes(device: str) -> int:
    """Memory that is free now for one actor: of its GPU, or of the node."""
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    return int(psutil.virtual_memory().available)


def used_bytes(device: str) -> int:
    """The most memory that this process has used so far."""
    if device == "cuda":
        return int(torch.cuda.max_memory_allocated())
    return int(psutil.Process().memory_info().rss)
