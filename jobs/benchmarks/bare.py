"""The limit: a bare loop of the forward passes that a job makes, on tensors that are already in memory.

No reading, decoding, random numbers, casting, storing, nor any of the job's own code but the recorder of taps.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from time import monotonic, process_time
from typing import Any

import torch
from torch import Tensor

from jobs.benchmarks.workbench import loaded, loaded_backbone
from pipeline.backbone import Backbone
from pipeline.batches import LoadedBatch
from pipeline.plan import Plan, make_plan
from pipeline.taps import Recorder
from schemas.spec import ExtractSpec

_LOADING_S = 300.0
_start: Any
"""Where the processes wait until all are ready."""


@dataclass(frozen=True)
class _Inputs:
    """One batch, as the networks take it."""

    pixels: Tensor
    draw: Tensor
    noise: Tensor
    captions: list[str]


def passes(backbone: Backbone, plan: Plan, batches: list[LoadedBatch]) -> Callable[[], None]:
    """A function that makes, for every batch, one VAE encoding and each group's pass up to its last tap.

    The groups must differ in their prompts only. A fixed prompt's text is encoded beforehand, a caption's within the
    loop, as both are in a job.
    """
    groups = plan.spec.groups
    timestep = plan.manifest.timesteps[groups[0].name]
    inputs = [_inputs(backbone, item) for item in batches]
    size = plan.spec.backbone.batch_size
    fixed = {
        group.prompt: {
            name: value.expand(size, *value.shape[1:])
            for name, value in backbone.encode_text([group.prompt]).items()
        }
        for group in groups
        if not group.varies
    }
    recorders = {
        group.name: Recorder(backbone.network, [a.tap for a in plan.manifest.arrays if a.group == group.name])
        for group in groups
    }
    schedule, network = backbone.schedule, backbone.network

    @torch.inference_mode()
    def loop() -> None:
        for batch in inputs:
            mean, std = backbone.encode_images(batch.pixels)
            latents = backbone.scale_latents(mean + std * batch.draw)
            noisy = schedule.scale(schedule.add_noise(latents, batch.noise, timestep), timestep)
            for group in groups:
                text = fixed[group.prompt] if group.prompt in fixed else backbone.encode_text(batch.captions)
                call = backbone.inputs(network, noisy.to(backbone.dtype), torch.tensor(timestep), text)
                recorders[group.name].run(partial(backbone.predict, call))

    return loop


def _inputs(backbone: Backbone, item: LoadedBatch) -> _Inputs:
    pixels = torch.from_numpy(item.batch.pixels)
    with torch.inference_mode():
        mean, _ = backbone.encode_images(pixels[:1])
    shape = (len(pixels), *mean.shape[1:])
    captions = [caption or "" for caption in item.batch.texts.get("caption", [])]
    return _Inputs(pixels, torch.randn(shape), torch.randn(shape), captions)


def in_processes(spec: ExtractSpec, processes: int) -> dict[str, float]:
    """The loop in several processes at once, each with its share of the images and its own backbone.

    Returns:
        images_per_s of all together, from the first start to the last end; cpu_s_per_image.
    """
    context = get_context("spawn")
    start = (context.Barrier(processes, timeout=_LOADING_S),)
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_share, initargs=start) as pool:
        found = list(pool.map(_process, [spec] * processes, range(processes), [processes] * processes))
    images = sum(one["images"] for one in found)
    wall = max(one["end"] for one in found) - min(one["start"] for one in found)
    return {"images_per_s": images / wall, "cpu_s_per_image": sum(one["cpu_s"] for one in found) / images}


def _share(start: Any) -> None:
    """Barriers reach a pool's processes in no other way."""
    global _start
    _start = start


def _process(spec: ExtractSpec, number: int, processes: int) -> dict[str, float]:
    plan = make_plan(spec)
    batches = loaded(plan)[number::processes]
    backbone = loaded_backbone(plan)
    loop = passes(backbone, plan, batches)
    passes(backbone, plan, batches[:2])()  # warm up
    _start.wait()
    start, cpu = monotonic(), process_time()
    loop()
    end = monotonic()
    images = sum(record is not None for item in batches for record in item.records)
    return {"images": images, "start": start, "end": end, "cpu_s": process_time() - cpu}
