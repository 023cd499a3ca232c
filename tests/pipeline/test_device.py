"""Which device computes, what it is called, and what memory is left on it."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from pipeline import device


def with_gpu(monkeypatch: pytest.MonkeyPatch, present: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: present)


@pytest.mark.parametrize(
    ("wanted", "present", "chosen"),
    [("auto", True, "cuda"), ("auto", False, "cpu"), ("cpu", True, "cpu"), ("cuda", True, "cuda")],
)
def test_choose(monkeypatch: pytest.MonkeyPatch, wanted: str, present: bool, chosen: str) -> None:
    with_gpu(monkeypatch, present)
    assert device.choose(wanted) == chosen


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpu(monkeypatch, False)
    with pytest.raises(
        ValueError, match=r"cluster\.device is cuda, but torch .* sees no GPU .*; use cpu or auto"
    ):
        device.choose("cuda")


def test_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """`cpu` first, which the probe tells main memory by."""
    assert device.name("cpu").startswith("cpu ")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100")
    assert device.name("cuda") == "NVIDIA H100"


def test_memory_of_a_process_and_its_node() -> None:
    before = device.used_bytes("cpu")
    held = np.frombuffer(
        mmap.mmap(-1, 100 * 2**20), np.uint8
    )  # pages of its own, not some that a heap had left
    held[:] = 1
    assert device.used_bytes("cpu") - before > 50 * 2**20
    device.forget_peak("cpu")
    assert device.peak_bytes("cpu") > 50 * 2**20
    assert 0 < device.free_bytes("cpu") < psutil.virtual_memory().total
    assert held.all()


@pytest.mark.parametrize(
    ("limit", "free"), [("1000", 1000 - 700 + 200), ("500", 0), ("max", None), (None, None)]
)
def test_a_container_has_less_than_its_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str | None, free: int | None
) -> None:
    """The node's memory was taken for the container's, and the kernel killed the actors."""
    monkeypatch.setattr(device, "_CGROUP", tmp_path)
    if limit is not None:
        (tmp_path / "memory.max").write_text(f"{limit}\n")
        (tmp_path / "memory.current").write_text("700\n")
        (tmp_path / "memory.stat").write_text("anon 400\ninactive_file 200\nactive_file 100\n")
    if free is None:
        assert device.free_bytes("cpu") > 2**20
    else:
        assert device.free_bytes("cpu") == free
