"""Suppression techniques as a spec names them: what steers a group's passes toward the image.

    techniques:
      - {type: controlnet, source: ./canny}
      - {type: lora, source: ./horses.safetensors, scale: 0.8}

Techniques of a group act together, in whatever combination; each is carried out by the class of its name in
`pipeline.techniques`.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from schemas.model import Model, Url

_CONTROL_IMAGE = re.compile(r"canny|field:[^:]+|call:[\w.]+:\w+")


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"is {value}; allowed is a finite number")
    return value


Scale = Annotated[float, AfterValidator(_finite)]


class ControlNet(Model):
    """A ControlNet whose control image comes from the image itself or lies beside it. Several add up."""

    type: Literal["controlnet"]
    source: Url
    """A diffusers folder (path or fsspec URL), a hub id `owner/name`, or `embedded/NAME` of the package."""
    revision: str | None = None
    """Commit of a hub id; required for one."""
    image: str = "canny"
    """`canny`; `field:EXT` for an image of the sample with that tar extension (`field:depth.png`), of any resolution
    but with the picture's proportions; or `call:MODULE:FUNCTION`, a function on every node's import path that takes
    pixels uint8 [B, 3, H, W] and returns control images float [B, 3, H, W] in [0, 1]. The store knows the function by
    the content of MODULE's file, not by what that imports or loads."""
    low: int = Field(default=100, ge=0)
    """Canny's lower threshold, as OpenCV counts."""
    high: int = Field(default=200, ge=0)
    """Canny's upper threshold."""
    scale: Scale = 1.0
    """Of the ControlNet's residuals."""

    @field_validator("image")
    @classmethod
    def _known_image(cls, value: str) -> str:
        if not _CONTROL_IMAGE.fullmatch(value):
            raise ValueError(f"is {value!r}; allowed are 'canny', 'field:EXT' and 'call:MODULE:FUNCTION'")
        return value

    @model_validator(mode="after")
    def _thresholds(self) -> ControlNet:
        if self.low > self.high:
            raise ValueError(
                f"has low {self.low} above high {self.high}; canny's lower threshold comes first"
            )
        return self

    @property
    def field(self) -> str | None:
        """Tar extension of the control image, in lower case as samples' fields are; None if it is no field."""
        kind, _, rest = self.image.partition(":")
        return rest.lower() if kind == "field" else None


class Lora(Model):
    """Low-rank changes of the weights; LoRA, LoCon and LoHa, in diffusers', PEFT's and kohya's formats."""

    type: Literal["lora"]
    source: Url
    """A .safetensors file (path or fsspec URL), or `embedded/NAME` of the package."""
    scale: Scale = 1.0
    """Beside the rank and alpha that the file itself states."""


class Guidance(Model):
    """Classifier-free guidance: every tap becomes `u + scale * (c - u)` of the passes with and without the prompt.

    The noise estimates of `denoise` and `inversion` are guided as well. Weak in the paper: a negative control.
    """

    type: Literal["guidance"]
    scale: Scale
    negative_prompt: str = ""
    """Fixed text."""

    @field_validator("negative_prompt")
    @classmethod
    def _no_template(cls, value: str) -> str:
        if re.search(r"\{(caption|json:.*)\}", value):
            raise ValueError(f"is {value!r}; it is one text for all samples, without placeholders")
        return value


class IpAdapter(Model):
    """The image itself as a prompt. Weak in the paper: a negative control."""

    type: Literal["ip-adapter"]
    source: Url
    """A .safetensors file (path or fsspec URL)."""
    image_encoder: Url
    """A folder of a CLIPVisionModelWithProjection (path or fsspec URL), or a hub id `owner/name`."""
    image_encoder_revision: str | None = None
    """Commit of a hub id; required for one."""
    scale: Scale = 1.0


class Denoise(Model):
    """Start at a stronger noise and denoise down to the group's own, with the scheduler's own steps."""

    type: Literal["denoise"]
    start: int = Field(ge=2, lt=1000)
    """Noise strength to start from, in thousandths, counted as a group's `t`; the paper uses 60 for `t` 50."""


class Inversion(Model):
    """DDIM inversion in place of random noise: the latents are carried up to the group's timestep by the network."""

    type: Literal["inversion"]
    steps: int = Field(default=10, ge=1, le=1000)
    """From the clean latents to the timestep, evenly spaced; each is a pass of the network."""


class NoNoise(Model):
    """Clean latents at the group's timestep, for weights trained for that, such as CleanDIFT's."""

    type: Literal["no-noise"]


class Average(Model):
    """The mean of every tap over several draws of the noise, each a pass of its own."""

    type: Literal["average"]
    seeds: int = Field(ge=2, le=64)
    """The group's own seed and those that follow."""


OF_NOISE = (Denoise, Inversion, NoNoise, Average)
"""About the noise that a feature starts from, not about what the network computes."""

Technique = Annotated[
    ControlNet | Lora | Guidance | IpAdapter | Denoise | Inversion | NoNoise | Average,
    Field(discriminator="type"),
]
