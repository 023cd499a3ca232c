"""A LoRA switch beside a pass of the network, and a pass with a LoRA beside one without and beside PEFT's layers."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from jobs.benchmarks.figures import Figure, Line, Measurement, in_turns
from jobs.benchmarks.workbench import Workbench
from pipeline import embedded, families
from pipeline.backbone import Backbone
from pipeline.techniques.lora import Lora
from schemas import techniques as specs

_RANK = 16
_BATCH = 8
_SIDE = 128
_PASSES = 3
"""In a row, for one figure."""


def measure(bench: Workbench) -> Measurement:
    """On one core: a LoRA of the attention and feed-forward layers, as most are, and one of every layer."""
    torch.set_num_threads(1)
    found = Measurement(facts={"rank": _RANK, "batch_size": _BATCH, "image_size": [_SIDE, _SIDE]})
    for what, part in {"transformer blocks": ".transformer_blocks.", "every layer": ""}.items():
        ours, plain = _backbone(), _backbone()
        path, found.facts[f"layers: {what}"] = _write(bench.folder / "lora.safetensors", ours.network, part)
        others = {"without": _pass(plain)}
        if importlib.util.find_spec("peft") is not None:
            others["in PEFT's layers"] = _pass(_by_peft(path))
        lora, run = Lora(specs.Lora(type="lora", source=str(path)), ours), _pass(ours)
        lora.attach()
        lora.detach()  # warm up
        _switch(bench, found, what, lora, _pass(plain))
        # Not attached and detached in turns: on a CPU the memory that is freed in between slows passes down, whoever
        # frees it.
        lora.attach()
        _passes(bench, found, f"pass, in force, {what}", run, others)
        lora.detach()
        _passes(bench, found, f"pass, out of force, {what}", run, {"without": others["without"]})
    return found


def _switch(bench: Workbench, found: Measurement, what: str, lora: Lora, plain: Callable[[], float]) -> None:
    def switch() -> float:
        started = perf_counter()
        lora.attach()
        lora.detach()
        return 1000 * (perf_counter() - started)

    values = in_turns(_repeats(bench), ours=switch, other=plain)
    ours, other = Figure("into force and out", values["ours"]), Figure("a pass without", values["other"])
    found.lines.append(Line(f"switch, {what}", "ms", "lower", ours, other))


def _passes(
    bench: Workbench,
    found: Measurement,
    what: str,
    run: Callable[[], float],
    others: dict[str, Callable[[], float]],
) -> None:
    values = in_turns(_repeats(bench), ours=run, **others)
    for name in others:
        ours, other = Figure("merged", values["ours"]), Figure(name, values[name])
        found.lines.append(Line(what, "ms", "lower", ours, other))


def _backbone() -> Backbone:
    return families.load(Path(embedded.BACKBONE), dtype=torch.float32, device="cpu")


def _by_peft(path: Path) -> Backbone:
    """The same file through diffusers' own loader, which puts layers of PEFT's around the network's."""
    backbone = _backbone()
    backbone.network.load_lora_adapter(load_file(path), prefix="unet", adapter_name="one")
    return backbone


def _repeats(bench: Workbench) -> int:
    return 2 * bench.scale.repeats + 1


def _write(path: Path, network: nn.Module, part: str) -> tuple[Path, int]:
    """A file in diffusers' format with small random changes of every layer whose path has a part."""
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, torch.Tensor] = {}
    layers = 0
    for name, module in network.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)) and part in f".{name}":
            shape = module.weight.shape
            down = torch.randn(_RANK, *shape[1:], generator=generator) / 100
            up = torch.randn(shape[0], _RANK, *(1 for _ in shape[2:]), generator=generator) / 100
            tensors |= {f"unet.{name}.lora_A.weight": down, f"unet.{name}.lora_B.weight": up}
            layers += 1
    save_file(tensors, path)
    return path, layers


def _pass(backbone: Backbone) -> Callable[[], float]:
    """A function that makes some passes to the network's end and returns the milliseconds of one."""
    generator = torch.Generator().manual_seed(0)
    shape = backbone.latent_shape(backbone.folder, [_SIDE, _SIDE])
    latents = torch.randn(_BATCH, *shape, generator=generator)
    text = backbone.encode_text(["a photo"] * _BATCH)
    inputs: dict[str, Any] = backbone.inputs(backbone.network, latents, torch.tensor(50), text)

    def run() -> float:
        started = perf_counter()
        for _ in range(_PASSES):
            backbone.predict(inputs)
        return 1000 * (perf_counter() - started) / _PASSES

    run()  # warm up
    return run
