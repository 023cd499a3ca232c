"""GATE's qualitative guideline: images are repainted without and with a candidate, from the same noise.

What steers extraction steers here: the network is called by the passes of the engine, with the candidate's prompt and
techniques in force, and steps of DDIM lead from strong noise to a picture. Noise belongs to an image, not to a
candidate; a candidate that suppresses content shift brings the picture closer to its input.
"""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline import checkpoint, families, noise, sources, techniques
from pipeline import device as devices
from pipeline.backbone import Backbone
from pipeline.batch import Batch
from pipeline.decode import decode, decode_beside
from pipeline.gate.candidates import group
from pipeline.gate.sampling import Drawn
from pipeline.generation import Decoder, ddim
from pipeline.noising import Flow, Schedule, load_schedule
from pipeline.passes import Passes
from pipeline.recipes import Recipe, windows
from pipeline.techniques.starts import Draw, Estimate, Noise
from schemas.gate import Candidate, GateSpec
from schemas.groups import Group
from schemas.techniques import OF_NOISE, Guidance


def left_out(candidate: Candidate) -> str | None:
    """Why a candidate has no meaning here, or None: Img2Img has its own start, and one draw of noise."""
    found = [one.type for one in candidate.techniques if isinstance(one, OF_NOISE)]
    if not found:
        return None
    return (
        f"{' and '.join(map(repr, found))} concerns the noise that a feature starts from; Img2Img has its own"
    )


def check(folder: Path) -> None:
    """Before work starts: whether a backbone, a diffusers folder, can repaint; needs its configs only.

    Raises:
        ValueError: a network of flow matching, which DDIM does not lead through.
    """
    _refuse_flow(load_schedule(folder, checkpoint.config(folder, "scheduler")), folder)


def repaint(spec: GateSpec, candidate: Candidate, drawn: Drawn) -> NDArray[np.uint8] | None:
    """Some of the drawn images, as many as `img2img.images` says, repainted: RGB [n, H, W, 3].

    None for a candidate that is `left_out`. The same bytes whatever else is repainted.

    Raises:
        ValueError: as `Repainter`.
    """
    if left_out(candidate):
        return None
    device = devices.choose(spec.cluster.device)
    if device == "cpu":
        torch.set_num_threads(spec.cluster.cpus_per_actor)
    dtype = getattr(torch, spec.backbone.dtype)
    backbone = families.load(sources.locate(spec.backbone), dtype=dtype, device=device)
    return Repainter(backbone, spec)(candidate, batch_of(spec, drawn))


def batch_of(spec: GateSpec, drawn: Drawn) -> Batch:
    """The images that are repainted, as the network takes them; their `pixels` [n, 3, H, W] are the inputs.

    Raises:
        BadSample: a control image of other proportions than its image.
    """
    assert spec.img2img is not None
    size, most = (spec.image_size[0], spec.image_size[1]), spec.input.max_pixels
    drawn = drawn.pick(drawn.places(spec.img2img.images))
    images = [decode(data, size, most, spec.fit) for data in drawn.images]
    fields = {
        name: [
            decode_beside(data, (image.height, image.width), size, most, spec.fit)
            for data, image in zip(values, images, strict=True)
        ]
        for name, values in drawn.controls.items()
    }
    return Batch(
        ids=list(drawn.ids),
        pixels=np.stack([image.pixels for image in images]),
        boxes=np.array([image.box for image in images], np.int32),
        texts={name: list(values) for name, values in drawn.texts.items()},
        fields={name: np.stack(values) for name, values in fields.items()},
    )


class Repainter:
    """Repaints batches with one candidate after the other.

    Args:
        backbone: on its device, with its text encoders; its weights are its own again after every call.
        spec: says how (`img2img`, which must be there), and the plain prompt.

    Raises:
        ValueError: a network of flow matching, or a VAE without a decoder.
    """

    def __init__(self, backbone: Backbone, spec: GateSpec) -> None:
        assert spec.img2img is not None
        _refuse_flow(backbone.schedule, backbone.folder)
        self._backbone, self._spec, self._settings = backbone, spec, spec.img2img
        self._decode = Decoder(backbone)
        self._scheduler = ddim(backbone.folder)
        self._scheduler.set_timesteps(self._settings.steps, device=backbone.device)

    @torch.inference_mode()
    def __call__(self, candidate: Candidate, batch: Batch) -> NDArray[np.uint8]:
        """RGB pictures [n, H, W, 3] of a batch without padding; `plain()` repaints without any technique.

        Raises:
            ValueError: a candidate that is `left_out`, a technique that does not fit the backbone, or values that are
                not finite.
        """
        if reason := left_out(candidate):
            raise ValueError(f"candidate {candidate.name!r}: {reason}")
        recipe = self._recipe(candidate)
        with torch.autocast(self._backbone.device.type, enabled=False):  # whatever the caller has set
            latents = self._latents(recipe, batch)
            if not torch.isfinite(latents).all():
                raise ValueError(
                    f"img2img: with candidate {candidate.name!r} the network's values are not finite in"
                    f" {self._spec.backbone.dtype}; choose another backbone.dtype, or img2img: null"
                )
            return self._decode(latents)

    def _recipe(self, candidate: Candidate) -> Recipe:
        backbone, fields = self._backbone, group(self._spec, candidate)
        guided = any(isinstance(one, Guidance) for one in candidate.techniques)
        if not guided and self._settings.guidance != 1:  # which would be a pass for nothing
            own = {"type": "guidance", "scale": self._settings.guidance}
            fields["techniques"] = [*fields["techniques"], own]
        made = Group.model_validate(fields | {"latents": "mean"})
        steps = max(1, round(self._settings.strength * self._settings.steps))
        start = _DdimStart(made, self._scheduler, steps)
        return Recipe(
            group=made,
            start=start,
            timestep=start.timestep(backbone.schedule),
            windows=windows(made, type(backbone), backbone.folder),
            steering=tuple(
                techniques.load(one, backbone) for one in made.techniques if techniques.steers(one)
            ),
        )

    def _latents(self, recipe: Recipe, batch: Batch) -> Tensor:
        """Repainted, float32 [n, c, h, w], with the recipe's weights in force."""
        # The size of a pass is the same for every candidate and image, since kernels may depend on it.
        count = len(batch.ids)
        size = min(self._spec.backbone.batch_size, count)
        shape = self._backbone.latent_shape(self._backbone.folder, batch.size)
        with ExitStack() as stack:
            for technique in recipe.steering:
                if technique.changes_weights:
                    technique.attach()
                    stack.callback(technique.detach)
            parts = []
            for first in range(0, count, size):
                slots = range(first, min(first + size, count))
                part = batch.pick(slots).padded(size)
                numbers = noise.Numbers(part.ids, shape, self._spec.seed)
                parts.append(_Repainting(self._backbone, part, numbers).result(recipe)[: len(slots)])
            return torch.cat(parts)


class _Repainting(Passes):
    """The passes of one batch that lead to its recipe's start; none is recorded."""

    def __init__(self, backbone: Backbone, batch: Batch, numbers: noise.Numbers) -> None:
        def draw(seed: int, purpose: noise.Purpose, flip: bool) -> Tensor:
            return numbers.at(seed, purpose, (slice(None), slice(None)))

        super().__init__(backbone, batch, draw, {}, Counter())

    def result(self, recipe: Recipe) -> Tensor:
        """Float32 [B, c, h, w]."""
        return self._noisy(recipe, recipe.group.seed)


class _DdimStart(Noise):
    """From clean latents to others: noise, then deterministic DDIM (Song et al. 2021, eq. 12) down to none."""

    def __init__(self, group: Group, scheduler: Any, steps: int) -> None:
        super().__init__(group)
        self._scheduler, self._times = scheduler, scheduler.timesteps[-steps:]

    def timestep(self, schedule: Schedule) -> int:
        return int(self._times[0])

    def calls(self, schedule: Schedule) -> int:
        return len(self._times)

    def begin(self, schedule: Schedule, latents: Tensor, draw: Draw, estimate: Estimate) -> Tensor:
        latents = self._scheduler.add_noise(latents, draw().to(latents.device), self._times[:1])
        for time in self._times:
            latents = self._scheduler.step(estimate(latents, int(time)), time, latents, return_dict=False)[0]
        return latents


def _refuse_flow(schedule: Schedule, folder: Path) -> None:
    if isinstance(schedule, Flow):
        raise ValueError(
            f"img2img: the backbone is a {checkpoint.pipeline_class(folder)}, a network of flow matching, and"
            " Img2Img is made for networks of noise or v; set img2img: null"
        )
