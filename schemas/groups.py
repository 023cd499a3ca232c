"""Feature groups as a spec names them: which taps, at which noise, with which prompt and techniques."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from schemas.model import Dtype, Model, Name
from schemas.techniques import Denoise, Technique

PLACEHOLDER = re.compile(r"\{(.*?)\}")


def check_placeholders(prompt: str) -> str:
    """The prompt, or ValueError where it takes something that samples do not have."""
    for name in PLACEHOLDER.findall(prompt):
        if name != "caption" and not re.fullmatch("json:.+", name):
            raise ValueError(f"has the placeholder {{{name}}}; allowed are {{caption}} and {{json:FIELD}}")
    return prompt


"""In a prompt: what each sample fills in."""


class Tap(Model):
    """A site in the network whose activation is stored."""

    name: str
    dtype: Dtype | None = None
    """Of storage; default: `output.dtype`."""
    stages: Annotated[list[Literal["down", "mid", "up"]], Field(min_length=1)] | None = None
    """Of `attn` only: which stages' cross-attention counts; default: up, as in the reference."""
    strides: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=2, max_length=2)] | None = None
    """Of `attn` only: the finest and the coarsest resolution that count, in pixels a token; default: [16, 32]."""
    tokens: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | None = None
    """Of `attn` only: which of the prompt's tokens become channels; default: all."""

    @model_validator(mode="after")
    def _parameters_of_attn(self) -> Tap:
        given = [name for name in ("stages", "strides", "tokens") if getattr(self, name) is not None]
        if given and self.name != "attn":
            raise ValueError(f"has {given[0]!r}, which only the tap 'attn' takes")
        if self.strides is not None and self.strides[0] > self.strides[1]:
            raise ValueError(f"has strides {self.strides}; the finest comes first, the coarsest last")
        return self


class Group(Model):
    """A feature group: one pass of the backbone with one set of techniques."""

    name: Name
    taps: str | list[str | Tap]
    """A named set (`legacy`, `practical`), a tap, or a list of these; `gatehouse taps` lists them."""
    prompt: str = ""
    """Fixed text, or a template with `{caption}` and `{json:FIELD}`, filled in for each sample."""
    text_windows: int | None = Field(default=None, ge=1, le=16)
    """CLIP encoders read 77 tokens; a longer prompt is encoded in that many windows, one behind the other, and cut
    after the last. Default: as many as a fixed prompt needs, 1 for a template."""
    per_image_attention: bool = False
    """Allow attention taps with a template: their channels are the prompt's tokens, which differ by image then."""
    t: int | list[int] | None = None
    """Noise strength in thousandths, as the paper counts (t = 50): entry 1000 - t of the scheduler's timesteps, which
    makes the network see timestep 51 with Stable Diffusion's PNDM. Flow-matching backbones see t itself. A list
    makes a group of each, named NAME-tT."""
    timestep: int | list[int] | None = None
    """The timestep that the network sees, set directly. Give this or `t`."""
    seed: int = 0
    """Groups with the same seed share posterior sample and noise."""
    latents: Literal["sample", "mean"] = "sample"
    """What is taken of the VAE's posterior; the paper samples."""
    flip: bool = False
    """Of the picture's mirror image, left and right exchanged; features are stored as computed, mirrored."""
    techniques: list[Technique] = Field(default=[])
    """What suppresses content shift: see schemas/techniques.py."""

    @field_validator("prompt")
    @classmethod
    def _placeholders(cls, value: str) -> str:
        return check_placeholders(value)

    @field_validator("taps")
    @classmethod
    def _some_taps(cls, value: str | list[str | Tap]) -> str | list[str | Tap]:
        if not value:
            raise ValueError("names no tap")
        listed = (
            [] if isinstance(value, str) else [one if isinstance(one, str) else one.name for one in value]
        )
        if twice := next((name for name in listed if listed.count(name) > 1), None):
            raise ValueError(f"names {twice!r} twice; give each tap once")
        return value

    @field_validator("t", "timestep")
    @classmethod
    def _times(cls, value: int | list[int] | None, info: ValidationInfo) -> int | list[int] | None:
        least = 1 if info.field_name == "t" else 0
        times = [] if value is None else [value] if isinstance(value, int) else value
        if times != sorted(set(times)) or not all(least <= time < 1000 for time in times) or value == []:
            raise ValueError(f"is {value}; allowed is a number from {least} to 999, or a rising list of them")
        return value

    @field_validator("techniques")
    @classmethod
    def _fit_together(cls, value: list[Technique]) -> list[Technique]:
        found = [technique.type for technique in value]
        for name in found:
            if found.count(name) > 1 and name not in ("controlnet", "lora"):
                raise ValueError(
                    f"{name!r} is there twice; only 'controlnet' and 'lora' may come several times"
                )
        starts = [name for name in found if name in ("denoise", "inversion", "no-noise")]
        if len(starts) > 1:
            raise ValueError(
                f"{' and '.join(map(repr, starts))} each set what the network starts from; give one"
            )
        if "average" in found and starts and starts != ["denoise"]:
            raise ValueError(f"'average' is over draws of noise, and {starts[0]!r} draws none")
        return value

    @model_validator(mode="after")
    def _time(self) -> Group:
        if (self.t is None) == (self.timestep is None):
            raise ValueError("needs exactly one of 't' (the paper's count) and 'timestep' (the network's)")
        if too_long := [one.name for one in self.at_each_time() if len(one.name) > 64]:
            raise ValueError(
                f"has a list of times, which makes the name {too_long[0]!r}: at most 64 characters"
            )
        for technique in self.techniques:
            if isinstance(technique, Denoise) and (self.t is None or technique.start <= max(self.times)):
                raise ValueError(
                    f"'denoise' starts at {technique.start} of a group's 't', which must be given and lower"
                )
        return self

    @property
    def times(self) -> list[int]:
        """`t` or `timestep`, as a list."""
        given = self.t if self.t is not None else self.timestep
        return given if isinstance(given, list) else [given] if given is not None else []

    @property
    def placeholders(self) -> list[str]:
        """What the prompt takes from each sample: `caption` and `json:FIELD`."""
        return list(dict.fromkeys(PLACEHOLDER.findall(self.prompt)))

    @property
    def varies(self) -> bool:
        """Whether the prompt differs from row to row."""
        return bool(self.placeholders)

    def asked(self, tap: str) -> Tap:
        """What the group says of a tap, beyond its name."""
        listed = [] if isinstance(self.taps, str) else self.taps
        return next((one for one in listed if isinstance(one, Tap) and one.name == tap), Tap(name=tap))

    def at_each_time(self) -> list[Group]:
        """This group, or one for each of its times."""
        field = "timestep" if self.t is None else "t"
        if not isinstance(getattr(self, field), list):
            return [self]
        return [self.model_copy(update={"name": f"{self.name}-t{time}", field: time}) for time in self.times]
