"""What a technique is to the engine: weights it attaches, things it sees in the pictures, inputs it adds to a call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.backbone import Backbone
from schemas.model import Model

Spec = TypeVar("Spec", bound=Model)


@dataclass
class Pictures:
    """A batch's pictures as the network will see them."""

    pixels: NDArray[np.uint8]
    """[B, 3, H, W]."""
    boxes: NDArray[np.int32]
    """Where each picture lies: top, left, height, width in pixels, [B, 4]; the rest is padding. Of a tile's pictures,
    boxes may reach beyond it."""
    fields: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)
    """Other images of the samples, by tar extension, [B, 3, H, W] each."""


class Technique(Generic[Spec]):
    """One technique of one group, loaded once for a backbone.

    Every method has a default that does nothing, so that each technique shows only what it does. The engine calls
    `attach` before the passes of its group and `detach` before those of others; `look` once a batch; `steer` before
    each call of the network.
    """

    changes_weights = False
    """Whether `attach` has an effect, on the network or on the text encoders."""

    def __init__(self, spec: Spec, backbone: Backbone) -> None:
        self.spec, self.backbone = spec, backbone

    @classmethod
    def check(cls, spec: Spec, family: type[Backbone], folder: Path) -> dict[str, str]:
        """Before work starts, without weights in memory: what the technique needs is there and fits the backbone.

        Returns:
            SHA-256 of every file that it will load, by a name that does not depend on the machine.

        Raises:
            ValueError: names what is missing or does not fit, and the cure.
        """
        return {}

    @property
    def sight(self) -> tuple[object, ...]:
        """All that `look` depends on but the pictures: techniques that see the same look once."""
        return (self.spec.model_dump_json(exclude={"scale"}),)

    def attach(self) -> None:
        """Put the weights in force."""

    def detach(self) -> None:
        """Take them out of force: the network's values are the bytes they were before."""

    def look(self, pictures: Pictures) -> Tensor | None:
        """What the technique takes from a batch's pictures, [B, ...]; kept for all calls of the batch."""
        return None

    def steer(self, seen: Tensor | None, inputs: dict[str, Any]) -> dict[str, Any]:
        """The network's keyword arguments for one call, from those without the technique; `seen` is what `look`
        gave."""
        return inputs
