"""One batch of samples to the features of every group: the whole method, pixels in and arrays out.

The engine loads what the groups' techniques need once, orders the groups so that weights are switched least, and packs
what the passes (`pipeline.passes`) record. Large pictures go through it tile by tile.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline import attn, families, noise, scores, sources, techniques
from pipeline.backbone import Backbone, Text
from pipeline.batch import Batch
from pipeline.geometry import cells
from pipeline.passes import Maps, Passes
from pipeline.recipes import Recipe, attn_sources, missing, tiling_of, windows
from pipeline.recorder import Recorder, config_of
from pipeline.techniques.base import Technique
from pipeline.techniques.starts import start_of
from pipeline.tiles import Blend, Place, places
from schemas import taps as tap_names
from schemas.groups import Group
from schemas.receipts import ArrayLayout
from schemas.spec import ExtractSpec, Scores

GroupTap = tuple[str, str]
_TORCH = {"float16": torch.float16, "float32": torch.float32}


@dataclass
class Features:
    """What one batch became; rows of slots that hold padding or failed mean nothing."""

    maps: dict[GroupTap, NDArray[np.generic]]
    """[B, C, h, w] in the stored dtype."""
    pooled: dict[GroupTap, NDArray[np.float32]]
    """Mean over the cells of the picture before the cast, [B, C]."""
    reasons: dict[str, list[str | None]]
    """Per group and slot: why the group failed there, or None."""
    scores: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    """Per group that has one, where the spec asks for it: Score, [B]."""


def make_engine(spec: ExtractSpec, arrays: Sequence[ArrayLayout], device: str) -> Engine:
    """Load a spec's backbone onto a device and set the threads that a CPU uses, since values depend on them."""
    if device == "cpu":
        torch.set_num_threads(spec.cluster.cpus_per_actor)
    folder = sources.locate(spec.backbone)
    backbone = families.load(folder, dtype=getattr(torch, spec.backbone.dtype), device=device)
    return Engine(backbone, spec, arrays)


class Engine:
    """Computes feature groups with a loaded backbone, which it owns from then on.

    Args:
        backbone: on its device.
        spec: of the job.
        arrays: the taps that each group stores, with shapes and dtypes.
    """

    def __init__(self, backbone: Backbone, spec: ExtractSpec, arrays: Sequence[ArrayLayout]) -> None:
        self.backbone = backbone
        self.arrays = list(arrays)
        self.calls: Counter[str] = Counter()
        """Network passes, image and text encodings, weight switches and more, so far."""
        self._spec = spec
        self._latents = backbone.latent_shape(backbone.folder, spec.image_size)
        self._tiling = None if spec.tiles is None else tiling_of(spec, arrays, self._latents)
        self._loaded: dict[str, Technique[Any]] = {}
        self._attached: list[Technique[Any]] = []
        self.recipes = [self._recipe(group) for group in spec.expanded_groups]
        self.references: list[Recipe] = []
        """What Scores are measured against; nothing of it is stored."""
        self._arrays = {
            one: [array for array in arrays if array.group == one.group.name] for one in self.recipes
        }
        self._clean: dict[Recipe, Recipe] = {}
        self._anchors: dict[Recipe, Recipe] = {}
        if spec.output.scores is not None:
            self._add_references(spec.output.scores)
        self._sources = {one: self._sources_of(one) for one in self._all}
        self._recorders = {one.key: self._recorder(one) for one in self._all}
        self._texts = self._fixed_texts()
        if not any(recipe.group.varies for recipe in self.recipes):
            backbone.drop_text_encoders()

    @property
    def network_calls(self) -> int:
        """Calls of the network that one image takes, for all groups together."""
        return sum({one.key: one.network_calls(self.backbone) for one in self._all}.values())

    @property
    def reference_calls(self) -> int:
        """Those of them that only Scores take."""
        groups = {one.key for one in self.recipes}
        own = {one.key: one.network_calls(self.backbone) for one in self.references if one.key not in groups}
        return sum(own.values())

    @torch.inference_mode()
    def run(self, batch: Batch) -> Features:
        """Features of all groups for one batch of the planned size."""
        with torch.autocast(self.backbone.device.type, enabled=False):  # whatever the caller has set
            features = Features({}, {}, {})
            tiles = self._passes(batch)
            shifts: dict[Recipe, scores.Shifts] = {}
            # A reference without noise is computed beside what is measured against it: they have the same weights.
            steps = [one for one in self._in_order() if one in self.recipes or one in self._clean]
            left = Counter(one.key for recipe in steps for one in self._with_clean(recipe))
            for recipe in steps:
                self._attach(recipe)
                maps, *clean = (self._maps(one, tiles, batch.size) for one in self._with_clean(recipe))
                if recipe in self.recipes:
                    self._pack(recipe, maps, batch, features)
                if clean:
                    shifts[recipe] = scores.shifts(maps, *clean)
                for one in self._with_clean(recipe):
                    left[one.key] -= 1
                    if not left[one.key]:
                        for passes in tiles.values():
                            passes.forget(one)
            for recipe, anchor in self._anchors.items():
                features.scores[recipe.group.name] = scores.mean_score(shifts[recipe], shifts[anchor])
            return features

    @property
    def _all(self) -> list[Recipe]:
        return [*self.recipes, *self.references]

    def _with_clean(self, recipe: Recipe) -> list[Recipe]:
        return [recipe, self._clean[recipe]] if recipe in self._clean else [recipe]

    def _add_references(self, wanted: Scores) -> None:
        """What the Score of every group takes, each pass once."""
        for recipe in self.recipes:
            arrays = [array for array in self._of(recipe) if scores.has_score(array.tap, array.shape)]
            if arrays:
                anchor = self._reference(scores.anchor(recipe.group, wanted), arrays)
                self._anchors[recipe] = anchor
                for one in (recipe, anchor):
                    self._clean[one] = self._reference(scores.clean(one.group), arrays)

    def _reference(self, group: Group, arrays: Sequence[ArrayLayout]) -> Recipe:
        """A reference at the taps of these arrays, maybe at those of other groups too."""
        made = self._recipe(group)
        recipe = next((one for one in self.references if one.key == made.key), made)
        if recipe is made:
            self.references.append(made)
        known = self._arrays.setdefault(recipe, [])
        known += [array for array in arrays if array.tap not in {one.tap for one in known}]
        return recipe

    def _passes(self, batch: Batch) -> dict[Place, Passes]:
        """The batch as the network sees it: whole, or tile by tile. What does not depend on the tile is shared."""
        numbers, texts = noise.Numbers(batch.ids, self._latents, self._spec.seed), dict(self._texts)

        def passes(part: Batch, place: Place) -> Passes:
            def draw(seed: int, purpose: noise.Purpose, flip: bool) -> Tensor:
                return numbers.at(seed, purpose, self._in_latents(place, part.size, flip))

            return Passes(self.backbone, part, draw, texts, self.calls)

        if self._tiling is None:
            return {(0, 0): passes(batch, (0, 0))}
        return {
            place: passes(batch.crop(*place, self._tiling.tile), place) for place in places(*self._tiling)
        }

    def _in_latents(self, place: Place, size: tuple[int, int], flip: bool) -> tuple[slice, slice]:
        """Rows and columns of the whole picture's latents that a tile of it has; of its mirror image, if flipped."""
        whole = (self._spec.image_size[0], self._spec.image_size[1])
        top, left = place
        if flip:
            left = whole[1] - left - size[1]
        rows, columns = (
            slice(start * cells // side, (start + length) * cells // side)
            for start, length, side, cells in zip((top, left), size, whole, self._latents[1:], strict=True)
        )
        return rows, columns

    def _maps(self, recipe: Recipe, tiles: Mapping[Place, Passes], size: tuple[int, int]) -> Maps:
        """A group's activations for whole pictures, laid together from those of their tiles."""
        recorder = self._recorders[recipe.key]
        if self._tiling is None:
            return self._taps(recipe, tiles[0, 0].activations(recipe, recorder), size)
        blends = {array.tap: Blend(*self._tiling) for array in self._of(recipe)}
        for place, passes in tiles.items():
            raw = passes.activations(recipe, recorder)
            for tap, value in self._taps(recipe, raw, self._tiling.tile).items():
                # A place is one of the picture itself, not of its mirror image.
                blends[tap].add(value.flip(3) if recipe.group.flip else value, place)
        whole = {tap: blend.whole() for tap, blend in blends.items()}
        return {tap: value.flip(3) for tap, value in whole.items()} if recipe.group.flip else whole

    def _recipe(self, group: Group) -> Recipe:
        backbone, start = self.backbone, start_of(group)
        return Recipe(
            group=group,
            start=start,
            timestep=start.timestep(backbone.schedule),
            windows=windows(group, type(backbone), backbone.folder),
            steering=tuple(self._load(spec) for spec in group.techniques if techniques.steers(spec)),
        )

    def _load(self, spec: Any) -> Technique[Any]:
        """A technique, loaded once for all groups that name the same."""
        key = spec.model_dump_json()
        if key not in self._loaded:
            self._loaded[key] = techniques.load(spec, self.backbone)
        return self._loaded[key]

    def _fixed_texts(self) -> dict[tuple[object, ...], Text]:
        """Encodings of every prompt that does not depend on the sample, under the weights it is used with."""
        texts: dict[tuple[object, ...], Text] = {}
        for recipe in self._in_order():
            self._attach(recipe)
            for place, prompt in enumerate(recipe.prompts):
                key = (prompt, recipe.windows, recipe.weights)
                if key not in texts and not (place == 0 and recipe.group.varies):
                    self.calls["text"] += 1
                    texts[key] = self.backbone.encode_text([prompt], recipe.windows)
        return texts

    def _in_order(self) -> list[Recipe]:
        """Groups with the same weights one behind the other, those whose weights are attached now first."""
        now = tuple(one.spec.model_dump_json() for one in self._attached)
        found = list(dict.fromkeys(recipe.weights for recipe in self._all))
        found.sort(key=lambda weights: weights != now)  # stable: otherwise as in the spec
        return sorted(self._all, key=lambda recipe: found.index(recipe.weights))

    def _attach(self, recipe: Recipe) -> None:
        wanted = [one for one in recipe.steering if one.changes_weights]
        if wanted == self._attached:
            return
        self.calls["switch"] += 1
        while self._attached:
            self._attached[-1].detach()
            self._attached.pop()
        for technique in wanted:
            technique.attach()
            self._attached.append(technique)

    def _of(self, recipe: Recipe) -> list[ArrayLayout]:
        return self._arrays[recipe]

    def _sources_of(self, recipe: Recipe) -> list[str]:
        """The maps that a group's `attn` is made of, if it stores that."""
        stored = any(array.tap == "attn" for array in self._of(recipe))
        return attn_sources(recipe.group, config_of(self.backbone.network)) if stored else []

    def _recorder(self, recipe: Recipe) -> Recorder:
        """Of the sites that a group's pass is recorded at, for it and for all groups that share it."""
        sites: list[str] = []
        for other in self._all:
            if other.key == recipe.key:
                sites += [array.tap for array in self._of(other) if array.tap != "attn"]
                sites += self._sources[other]
        return Recorder(self.backbone.network, list(dict.fromkeys(sites)))

    def _taps(self, recipe: Recipe, raw: Maps, size: tuple[int, int]) -> Maps:
        """What a group stores of a pass over pictures of a size, in pixels."""
        found = {array.tap: raw[array.tap] for array in self._of(recipe) if array.tap != "attn"}
        if maps := self._sources[recipe]:
            rows, columns = self._in_latents((0, 0), size, flip=False)
            tokens = recipe.group.asked("attn").tokens
            found["attn"] = attn.aggregate(
                {site: raw[site] for site in maps},
                (rows.stop, columns.stop),
                slice(None) if tokens is None else tokens,
            )
        return found

    def _pack(self, recipe: Recipe, activations: Maps, batch: Batch, features: Features) -> None:
        group = recipe.group
        reasons = missing(group, batch)
        for array in self._of(recipe):
            activation = activations[array.tap]
            inside = None
            if self._spec.fit == "pad" and tap_names.kind(array.tap) == "map":
                grid = (activation.shape[2], activation.shape[3])
                masks = np.stack([cells(box, batch.size, grid) for box in batch.boxes])
                inside = torch.from_numpy(masks[..., ::-1].copy() if group.flip else masks)
            stored, pooled, failed = pack(activation, array.dtype, inside)
            features.maps[group.name, array.tap] = stored
            features.pooled[group.name, array.tap] = pooled
            reasons = [first or second for first, second in zip(reasons, failed, strict=True)]
        features.reasons[group.name] = reasons


def pack(
    activation: Tensor, dtype: str, inside: Tensor | None = None
) -> tuple[NDArray[np.generic], NDArray[np.float32], list[str | None]]:
    """Cast one tap's activation [B, C, h, w] for storage.

    Args:
        activation: as the network gave it.
        dtype: of storage.
        inside: bool [B, h, w], cells that count for the mean; None for all.

    Returns:
        The stored values [B, C, h, w]; the mean over cells before the cast, float32 [B, C]; and per row a reason
        where the *cast* values are not finite: `float16-overflow` if the network's own were, else `non-finite`.
    """
    cast = activation.to(_TORCH[dtype])
    stored_finite = torch.isfinite(cast).flatten(1).all(1).tolist()
    network_finite = torch.isfinite(activation).flatten(1).all(1).tolist()
    reasons = [
        None if stored else (f"{dtype}-overflow" if network else "non-finite")
        for stored, network in zip(stored_finite, network_finite, strict=True)
    ]
    if inside is None:
        pooled = activation.float().flatten(2).mean(2)
    else:
        mask = inside.to(activation.device)[:, None]
        count = mask.sum((2, 3)).clamp(min=1)
        pooled = torch.where(mask, activation.float(), 0).sum((2, 3)) / count
    return cast.cpu().numpy(), pooled.cpu().numpy(), reasons
