"""A batch of samples in memory: what the engine computes from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass
class Batch:
    """Samples in their slots; a bad or missing sample leaves a slot of padding."""

    ids: list[tuple[str, str] | None]
    """(shard id, key) of each slot; None for padding."""
    pixels: NDArray[np.uint8]
    """[B, 3, H, W]; zeros in padding."""
    boxes: NDArray[np.int32]
    """Where the picture lies in [H, W]: top, left, height, width in pixels, [B, 4]."""
    texts: dict[str, list[str | None]] = field(default_factory=dict)
    """What prompts take from samples, by placeholder (`caption`, `json:FIELD`), for each slot."""
    text_reasons: dict[str, list[str | None]] = field(default_factory=dict)
    """Why a slot has none, where that is known."""
    fields: dict[str, NDArray[np.uint8]] = field(default_factory=dict)
    """Control images by tar extension, [B, 3, H, W] each; zeros where a slot has none."""
    field_reasons: dict[str, list[str | None]] = field(default_factory=dict)
    """Why a slot has none; None where it has one, and in padding."""

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        return self.pixels.shape[2], self.pixels.shape[3]

    def crop(self, top: int, left: int, size: tuple[int, int]) -> Batch:
        """A tile of every picture; boxes are where the whole picture lies, as seen from the tile."""
        part = np.s_[:, :, top : top + size[0], left : left + size[1]]
        fields = {name: images[part] for name, images in self.fields.items()}
        boxes = self.boxes - np.array([top, left, 0, 0], np.int32)
        return replace(self, pixels=self.pixels[part], boxes=boxes, fields=fields)

    def pick(self, slots: Sequence[int]) -> Batch:
        """A batch of some slots, in the order given."""

        def of(values: dict[str, list[str | None]]) -> dict[str, list[str | None]]:
            return {name: [one[slot] for slot in slots] for name, one in values.items()}

        return Batch(
            ids=[self.ids[slot] for slot in slots],
            pixels=self.pixels[list(slots)],
            boxes=self.boxes[list(slots)],
            texts=of(self.texts),
            text_reasons=of(self.text_reasons),
            fields={name: images[list(slots)] for name, images in self.fields.items()},
            field_reasons=of(self.field_reasons),
        )

    def padded(self, size: int) -> Batch:
        """With slots of padding up to a size."""
        more = size - len(self.ids)
        nothing: list[None] = [None] * more

        def arrays(values: NDArray[Any]) -> NDArray[Any]:
            return np.concatenate([values, np.zeros((more, *values.shape[1:]), values.dtype)])

        def lists(values: dict[str, list[str | None]]) -> dict[str, list[str | None]]:
            return {name: [*one, *nothing] for name, one in values.items()}

        return Batch(
            ids=[*self.ids, *nothing],
            pixels=arrays(self.pixels),
            boxes=arrays(self.boxes),
            texts=lists(self.texts),
            text_reasons=lists(self.text_reasons),
            fields={name: arrays(images) for name, images in self.fields.items()},
            field_reasons=lists(self.field_reasons),
        )
