"""One batch of samples to the features of every group: the whole method, tensors in and arrays out.

Whatever groups have in common is computed once: each intermediate result is kept under a key that names all inputs
that affect it, and groups that differ only in their taps share one pass of the network.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline import checkpoint, noise
from pipeline.backbone import Backbone
from pipeline.taps import Recorder
from schemas.receipts import ArrayLayout
from schemas.spec import ExtractSpec, Group

T = TypeVar("T")
GroupTap = tuple[str, str]
_TORCH = {"float16": torch.float16, "float32": torch.float32}


@dataclass
class Batch:
    """Samples in their slots; a bad or missing sample leaves a slot of padding."""

    ids: list[tuple[str, str] | None]
    """(shard id, key) of each slot; None for padding."""
    pixels: NDArray[np.uint8]
    """[B, 3, H, W]; zeros in padding."""
    captions: list[str | None]
    caption_reasons: list[str | None]
    """Why a slot has no caption, where that is known."""


@dataclass
class Features:
    """What one batch became; rows of slots that hold padding or failed mean nothing."""

    maps: dict[GroupTap, NDArray[np.generic]]
    """[B, C, h, w] in the stored dtype."""
    pooled: dict[GroupTap, NDArray[np.float32]]
    """Mean over h and w before the cast, [B, C]."""
    reasons: dict[str, list[str | None]]
    """Per group and slot: why the group failed there, or None."""


def make_engine(
    spec: ExtractSpec, arrays: Sequence[ArrayLayout], timesteps: dict[str, int], device: str
) -> Engine:
    """Load a spec's backbone onto a device and set the threads that a CPU uses, since values depend on them."""
    if device == "cpu":
        torch.set_num_threads(spec.cluster.cpus_per_actor)
    folder = checkpoint.locate(spec.backbone)
    backbone = Backbone(folder, dtype=getattr(torch, spec.backbone.dtype), device=device)
    return Engine(backbone, spec.groups, arrays, timesteps, spec.seed)


class Engine:
    """Computes feature groups with a loaded backbone.

    Args:
        backbone: on its device.
        groups: with their resolved timesteps in `timesteps`.
        arrays: the taps that each group stores, with dtypes.
        seed: of the spec.
    """

    def __init__(
        self,
        backbone: Backbone,
        groups: Sequence[Group],
        arrays: Sequence[ArrayLayout],
        timesteps: dict[str, int],
        seed: int,
    ) -> None:
        self.backbone = backbone
        self.groups = list(groups)
        self.arrays = list(arrays)
        self.timesteps = timesteps
        self.seed = seed
        self.calls: Counter[str] = Counter()
        """Network passes, image and text encodings made so far."""
        self._fixed_texts = _Results(self.calls)

    @torch.inference_mode()
    def run(self, batch: Batch) -> Features:
        """Features of all groups for one batch of the planned size."""
        with torch.autocast(self.backbone.device.type, enabled=False):  # whatever the caller has set
            return self._run(batch)

    def _run(self, batch: Batch) -> Features:
        results = _Results(self.calls)
        features = Features({}, {}, {})
        for group in self.groups:
            features.reasons[group.name] = self._caption_reasons(group, batch)
            activations = self._activations(group, batch, results)
            for array in (array for array in self.arrays if array.group == group.name):
                stored, pooled, reasons = pack(activations[array.tap], array.dtype)
                features.maps[array.group, array.tap] = stored
                features.pooled[array.group, array.tap] = pooled
                merged = zip(features.reasons[group.name], reasons, strict=True)
                features.reasons[group.name] = [first or second for first, second in merged]
        return features

    def _activations(self, group: Group, batch: Batch, results: _Results) -> dict[str, Tensor]:
        """The pass that serves a group, and every other group that feeds the network the same."""

        def same_pass(other: Group) -> bool:
            return self._pass_key(other) == self._pass_key(group)

        served = {other.name for other in self.groups if same_pass(other)}
        taps = list(dict.fromkeys(array.tap for array in self.arrays if array.group in served))

        def compute() -> dict[str, Tensor]:
            noisy = self._noisy(group, batch, results)
            text = self._text(group, batch, results)
            recorder = Recorder(self.backbone.unet, taps)
            return recorder.run(lambda: self.backbone.predict(noisy, self.timesteps[group.name], text))

        return results.get("network", self._pass_key(group), compute)

    def _pass_key(self, group: Group) -> tuple[object, ...]:
        return (group.seed, self.timesteps[group.name], group.prompt)

    def _noisy(self, group: Group, batch: Batch, results: _Results) -> Tensor:
        timestep = self.timesteps[group.name]
        pixels = torch.from_numpy(batch.pixels)
        mean, std = results.get("image", (), lambda: self.backbone.encode_images(pixels))

        def draw(purpose: noise.Purpose) -> Tensor:
            return self._draw(tuple(mean.shape[1:]), group.seed, purpose, batch)

        latents = results.get(
            "latents", (group.seed,), lambda: self.backbone.sample_latents(mean, std, draw("posterior"))
        )
        return results.get(
            "noisy",
            (group.seed, timestep),
            lambda: self.backbone.add_noise(latents, draw("noise"), timestep),
        )

    def _draw(self, shape: tuple[int, ...], group_seed: int, purpose: noise.Purpose, batch: Batch) -> Tensor:
        """Numbers of each slot's own sample [B, *shape]; zeros in padding."""
        drawn = np.zeros((len(batch.ids), *shape), np.float32)
        for slot, sample in enumerate(batch.ids):
            if sample is not None:
                shard, key = sample
                drawn[slot] = noise.normal(
                    shape, seed=self.seed, group_seed=group_seed, purpose=purpose, shard=shard, key=key
                )
        return torch.from_numpy(drawn)

    def _text(self, group: Group, batch: Batch, results: _Results) -> Tensor:
        """Embeddings of each slot's prompt [B, tokens, C]; a fixed prompt's are kept from batch to batch."""
        if group.uses_caption:
            prompts = [group.prompt.replace("{caption}", caption or "") for caption in batch.captions]
            return results.get("text", (group.prompt,), lambda: self.backbone.encode_text(prompts))
        fixed = self._fixed_texts.get(
            "text", (group.prompt,), lambda: self.backbone.encode_text([group.prompt])
        )
        return fixed.expand(len(batch.ids), -1, -1)

    @staticmethod
    def _caption_reasons(group: Group, batch: Batch) -> list[str | None]:
        if not group.uses_caption:
            return [None] * len(batch.ids)
        return [
            None if caption is not None or sample is None else reason or "no-caption"
            for sample, caption, reason in zip(batch.ids, batch.captions, batch.caption_reasons, strict=True)
        ]


class _Results:
    """Intermediate results, each computed once for all groups that need it, by kind and all inputs that affect it."""

    def __init__(self, calls: Counter[str]) -> None:
        self._kept: dict[tuple[str, tuple[object, ...]], object] = {}
        self._calls = calls

    def get(self, kind: str, inputs: tuple[object, ...], compute: Callable[[], T]) -> T:
        if (kind, inputs) not in self._kept:
            self._calls[kind] += 1
            self._kept[kind, inputs] = compute()
        return self._kept[kind, inputs]  # type: ignore[return-value]


def pack(activation: Tensor, dtype: str) -> tuple[NDArray[np.generic], NDArray[np.float32], list[str | None]]:
    """Cast one tap's activation [B, C, h, w] for storage.

    Returns:
        The stored values [B, C, h, w]; the mean over h and w before the cast, float32 [B, C]; and per row a reason
        where the *cast* values are not finite: `float16-overflow` if the network's own were, else `non-finite`.
    """
    cast = activation.to(_TORCH[dtype])
    stored_finite = torch.isfinite(cast).flatten(1).all(1).tolist()
    network_finite = torch.isfinite(activation).flatten(1).all(1).tolist()
    reasons = [
        None if stored else (f"{dtype}-overflow" if network else "non-finite")
        for stored, network in zip(stored_finite, network_finite, strict=True)
    ]
    pooled = activation.float().flatten(2).mean(2)
    return cast.cpu().numpy(), pooled.cpu().numpy(), reasons
