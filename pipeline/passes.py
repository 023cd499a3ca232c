"""The passes of the network that one batch needs, each made once for all feature groups that share it.

Every intermediate result (posterior, latents, network inputs, text, control images, activations) is kept under a key
that names all that affects it, so groups share whatever they have in common.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from pipeline.backbone import Backbone, Text
from pipeline.batch import Batch
from pipeline.noise import Purpose
from pipeline.recipes import Recipe
from pipeline.recorder import Recorder
from pipeline.techniques.base import Pictures, Technique
from schemas.groups import PLACEHOLDER, Group

T = TypeVar("T")
Maps = dict[str, Tensor]


class Passes:
    """One batch, or one tile of every picture in it.

    Args:
        backbone: with the weights of each recipe attached when it is asked for.
        batch: of pictures of one size.
        draw: (group seed, purpose, whether pictures are mirrored) -> standard normal numbers for the latents,
            [B, c, h, w].
        texts: encodings by (prompt, windows, weights): one row of a fixed prompt, a row for each slot of a template,
            which this adds. Shared by the tiles of one batch.
        calls: counts what is computed.
    """

    def __init__(
        self,
        backbone: Backbone,
        batch: Batch,
        draw: Callable[[int, Purpose, bool], Tensor],
        texts: dict[tuple[object, ...], Text],
        calls: Counter[str],
    ) -> None:
        self._backbone, self._batch, self._draw = backbone, batch, draw
        self._texts, self._calls = texts, calls
        self._kept: dict[tuple[object, ...], Any] = {}

    def activations(self, recipe: Recipe, recorder: Recorder) -> Maps:
        """The recorder's taps for a group, averaged over its seeds and guided."""
        return self._once("recorded", (recipe.key,), lambda: self._averaged(recipe, recorder))

    def forget(self, recipe: Recipe) -> None:
        """Let go of what was recorded for a group, once no other shares it."""
        self._kept.pop(("recorded", (recipe.key,)), None)

    def _averaged(self, recipe: Recipe, recorder: Recorder) -> Maps:
        first, *rest = recipe.seeds
        total = self._guided(recipe, recorder, first)
        if not rest:
            return total
        # In float32 whatever the dtype of computation, so that the mean of many passes loses nothing.
        total = {tap: value.float() for tap, value in total.items()}
        for seed in rest:
            for tap, value in self._guided(recipe, recorder, seed).items():
                total[tap] += value.float()
        return {tap: value / len(recipe.seeds) for tap, value in total.items()}

    def _guided(self, recipe: Recipe, recorder: Recorder, seed: int) -> Maps:
        """u + scale * (c - u) at every tap (Ho & Salimans 2022, eq. 6, for activations), or c alone."""
        noisy = self._noisy(recipe, seed)
        prompt, *negative = recipe.prompts
        conditional = recorder.run(lambda: self._call(recipe, noisy, recipe.timestep, prompt))
        if recipe.guidance is None:
            return conditional
        free = recorder.run(lambda: self._call(recipe, noisy, recipe.timestep, *negative))
        scale = recipe.guidance.scale
        return {tap: torch.lerp(free[tap].float(), conditional[tap].float(), scale) for tap in conditional}

    def _noisy(self, recipe: Recipe, seed: int) -> Tensor:
        latents = self._latents(recipe.group, seed)

        def begin() -> Tensor:
            return recipe.start.begin(
                self._backbone.schedule,
                latents,
                lambda: self._draw(seed, "noise", recipe.group.flip),
                lambda noisy, timestep: self._estimate(recipe, noisy, timestep),
            )

        # Only starts that call the network depend on prompt and techniques.
        own = recipe.key if recipe.start.calls(self._backbone.schedule) else type(recipe.start).__name__
        return self._once("noisy", (*_of_latents(recipe.group, seed), recipe.timestep, own), begin)

    def _estimate(self, recipe: Recipe, noisy: Tensor, timestep: int) -> Tensor:
        """The group's estimate of noise, guided if it is."""
        outputs = [
            self._backbone.estimate(self._call(recipe, noisy, timestep, prompt), noisy).float()
            for prompt in recipe.prompts
        ]
        if recipe.guidance is None:
            return outputs[0]
        conditional, free = outputs
        return torch.lerp(free, conditional, recipe.guidance.scale)

    def _call(self, recipe: Recipe, noisy: Tensor, timestep: int, prompt: str) -> Tensor:
        """One call of the network, with all that the techniques add."""
        self._calls["network"] += 1
        backbone = self._backbone
        text = self._text(recipe, prompt)
        inputs = backbone.inputs(
            backbone.network,
            noisy.to(backbone.dtype),
            torch.tensor(timestep, device=backbone.device),
            text,
        )
        for technique in recipe.steering:
            inputs = technique.steer(self._seen(technique, recipe.group.flip), inputs)
        return backbone.predict(inputs)

    def _latents(self, group: Group, seed: int) -> Tensor:
        """Clean latents, float32 [B, c, h, w]."""

        def encode() -> tuple[Tensor, Tensor]:
            return self._backbone.encode_images(torch.from_numpy(self._pictures(group.flip).pixels))

        def sample() -> Tensor:
            mean, std = self._once("image", (group.flip,), encode)
            if group.latents == "sample":
                mean = mean + std * self._draw(seed, "posterior", group.flip).to(mean.device)
            return self._backbone.scale_latents(mean)

        return self._once("latents", _of_latents(group, seed), sample)

    def _seen(self, technique: Technique[Any], flip: bool) -> Tensor | None:
        return self._once("control", (technique.sight, flip), lambda: technique.look(self._pictures(flip)))

    def _pictures(self, flip: bool) -> Pictures:
        batch = self._batch

        def mirror() -> Pictures:
            images = {"": batch.pixels, **batch.fields}
            turned = {name: np.ascontiguousarray(one[..., ::-1]) for name, one in images.items()}
            boxes = batch.boxes.copy()
            boxes[:, 1] = batch.size[1] - boxes[:, 1] - boxes[:, 3]
            return Pictures(turned.pop(""), boxes, turned)

        return self._once("mirror", (), mirror) if flip else Pictures(batch.pixels, batch.boxes, batch.fields)

    def _text(self, recipe: Recipe, prompt: str) -> Text:
        """Encodings of each slot's prompt."""
        slots, key = len(self._batch.ids), (prompt, recipe.windows, recipe.weights)
        if key not in self._texts:
            self._calls["text"] += 1
            prompts = [_filled(prompt, self._batch, slot) for slot in range(slots)]
            self._texts[key] = self._backbone.encode_text(prompts, recipe.windows)
        # Contiguous, since some networks view it in another shape.
        return {
            name: value.expand(slots, *value.shape[1:]).contiguous()
            for name, value in self._texts[key].items()
        }

    def _once(self, kind: str, inputs: tuple[object, ...], compute: Callable[[], T]) -> T:
        if (kind, inputs) not in self._kept:
            self._calls[kind] += 1
            self._kept[kind, inputs] = compute()
        kept: T = self._kept[kind, inputs]
        return kept


def _of_latents(group: Group, seed: int) -> tuple[object, ...]:
    """What clean latents depend on."""
    return (group.flip, group.latents, seed)


def _filled(prompt: str, batch: Batch, slot: int) -> str:
    """A template with the slot's texts; nothing where it has none, since its group fails there anyway."""
    return PLACEHOLDER.sub(lambda found: batch.texts[found[1]][slot] or "", prompt)
