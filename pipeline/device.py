"""What computes: its name for the record, its memory for the plan."""

from __future__ import annotations

import math
import platform
from pathlib import Path

import psutil
import torch

_CGROUP = Path("/sys/fs/cgroup")


def choose(wanted: str, key: str = "cluster.device") -> str:
    """`cpu` or `cuda` for this process; `auto` takes a GPU where there is one. `key` is where the spec says it.

    Raises:
        ValueError: `cuda` where this process has no GPU.
    """
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"{key} is cuda, but torch {torch.__version__} sees no GPU in this process; use cpu or auto"
        )
    return wanted


def name(device: str) -> str:
    """Model of a device; values are the same bytes only where this, the batch size and the libraries are the same."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"cpu {platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def free_bytes(device: str) -> int:
    """Memory that is free now for one actor: of its GPU, or of the node, or what a container's limit leaves."""
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    return int(min(psutil.virtual_memory().available, _container_free_bytes()))


def used_bytes(device: str) -> int:
    """Memory that this process uses now."""
    if device == "cuda":
        return int(torch.cuda.memory_allocated())
    return int(psutil.Process().memory_info().rss)


def forget_peak(device: str) -> None:
    """Begin a new measurement of `peak_bytes`."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak_bytes(device: str) -> int:
    """The most memory since `forget_peak`; on a CPU, whose peak is of a process's whole life, what is used now."""
    if device == "cuda":
        return int(torch.cuda.max_memory_allocated())
    return used_bytes(device)


def _container_free_bytes() -> float:
    """What a limit on this container (cgroup v2) leaves; infinite without one."""
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
        lines = (_CGROUP / "memory.stat").read_text().splitlines()
    except FileNotFoundError:
        return math.inf
    if limit == "max":
        return math.inf
    cached = next((int(line.split()[1]) for line in lines if line.startswith("inactive_file ")), 0)
    return max(0, int(limit) - used + cached)  # files that are only cached make room
