"""The LoRA job's spec, and what it writes: two LoRA files trained on a few images of the user's own.

    LORA/
      lora.json                what the files are: images, backbone, settings; created once, before training
      moderate.safetensors     after a part of the steps: generates well
      overfitted.safetensors   after all steps: slightly overfitted
      moderate.png, overfitted.png   prompts generated without and with each
      log.jsonl                a line a step

The paper uses both files together, for diversity: groups that differ in nothing but their `lora` technique.
"""

from __future__ import annotations

import math
import os
from typing import Annotated, Any, Final, Literal

from pydantic import Field, field_validator, model_validator

from schemas.groups import PLACEHOLDER, check_placeholders
from schemas.model import Dtype, ImageSize, Model, Url
from schemas.receipts import Receipt, fingerprint
from schemas.spec import Backbone, Input

SCHEMA_VERSION: Final = 1
MANIFEST = "lora.json"
MODERATE, OVERFITTED = "moderate", "overfitted"
"""Names of the files, without their endings."""


class TrainedBackbone(Backbone):
    """The diffusion model whose UNet the LoRA changes; it stays as it is itself."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the frozen weights. The LoRA's own are float32; on a GPU, products are computed in bfloat16 either way."""
    batch_size: int = Field(default=4, ge=1)
    """Images a training step."""


class Samples(Model):
    """Pictures that show what the LoRA has learned: prompts generated without it and with it, from one noise."""

    prompts: Annotated[list[str], Field(min_length=1)] | None = None
    """Fixed texts; default: the first four different prompts of the drawn images."""
    steps: int = Field(default=20, ge=1, le=1000)
    """Of DDIM with the checkpoint's noise schedule."""
    guidance: float = Field(default=5.0, ge=0)
    """Classifier-free guidance away from the empty prompt; 1 for none."""


class LoraSpec(Model):
    """One LoRA training. The defaults are the paper's: 30 images, LoCon, rank 64, alpha 32, two exports."""

    version: Literal[1]
    """Of this schema."""
    lora: Url
    """Folder or URL to write to; a `lora` technique names one of the files in it."""
    work: str | None = None
    """Local folder for the checkpoint, the log and sample pictures; default: `lora` with `-work` behind it. Required
    where `lora` is a URL."""
    input: Input
    """As in an extract spec."""
    image_size: ImageSize
    """[H, W] in pixels; best what features will be extracted at."""
    fit: Literal["stretch", "crop"] = "stretch"
    """How an image becomes `image_size`, as in an extract spec."""
    images: int = Field(default=30, ge=1)
    """How many are drawn from the shards, by `seed`; fewer are taken, with a warning, where there are no more."""
    flip: bool = False
    """Train on mirrored images as well, half of the time."""
    prompt: str = "{caption}"
    """Fixed text, or a template with `{caption}` and `{json:FIELD}`, filled in for each image."""
    fallback: str = "a photo"
    """Fixed text for images that lack what `prompt` takes."""
    backbone: TrainedBackbone = TrainedBackbone()
    """Any with a UNet: Stable Diffusion, SDXL, Playground v2, DeepFloyd IF."""
    layers: Literal["locon", "linear"] = "locon"
    """`locon`: every linear and convolutional layer of the UNet's blocks (attention, feed-forward, resnets, samplers);
    `linear`: the linear ones only, as in plain LoRA."""
    rank: int | None = Field(default=None, ge=1)
    """Of every layer's change. Default: a fifth of the narrowest level's channels, at least 4 and at most 64; so 64
    for Stable Diffusion and SDXL, whose narrowest level has 320."""
    alpha: float | None = Field(default=None, gt=0)
    """The change is scaled by alpha / rank; default: half the rank."""
    steps: int = Field(default=1500, ge=2)
    """Optimizer steps, of `backbone.batch_size` images each."""
    moderate_at: float = Field(default=0.5, gt=0, lt=1)
    """Share of the steps after which `moderate.safetensors` is taken."""
    learning_rate: float = Field(default=1e-4, gt=0)
    """Of AdamW, after a warm-up over a twentieth of the steps and until it falls to 0 over the last tenth."""
    dtype: Dtype = "float32"
    """Of the files; float16 halves them."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them: slower, but SDXL at 1024 px fits smaller GPUs."""
    checkpoint_every: int = Field(default=250, ge=1)
    """Steps between checkpoints, and between sample pictures."""
    samples: Samples | None = Samples()
    """null for none, which saves the VAE's decoder in memory."""
    seed: int = 0
    """Of the drawn images, the first weights, and every step's images, timesteps and noise."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes a GPU where there is one."""

    @field_validator("prompt")
    @classmethod
    def _placeholders(cls, value: str) -> str:
        return check_placeholders(value)

    @field_validator("alpha", "learning_rate")
    @classmethod
    def _finite(cls, value: float | None) -> float | None:
        if value is not None and not math.isfinite(value):
            raise ValueError(f"is {value}; allowed is a finite number above 0")
        return value

    @field_validator("work")
    @classmethod
    def _local(cls, value: str | None) -> str | None:
        if value is not None and (not value or "://" in value):
            raise ValueError(
                f"is {value!r}; allowed is a local folder, since checkpoints are replaced in place"
            )
        return value

    @model_validator(mode="after")
    def _consistent(self) -> LoraSpec:
        if self.work is None and "://" in self.lora:
            raise ValueError(
                f"lora is the URL {self.lora!r}, and checkpoints need a local folder: give one as `work`"
            )
        if self.work is not None and os.path.abspath(self.work) == os.path.abspath(self.lora):
            raise ValueError(
                f"work and lora are both {self.lora!r}; give checkpoints a folder of their own, or leave `work` out"
            )
        if (
            "caption" in self.placeholders
            and self.input.caption_field is None
            and self.input.captions is None
        ):
            raise ValueError(
                "prompt has {caption}, but input.caption_field is null and input.captions not given; give one of them,"
                " or a fixed prompt"
            )
        return self

    @property
    def placeholders(self) -> list[str]:
        """What the prompt takes from each image: `caption` and `json:FIELD`."""
        return list(dict.fromkeys(PLACEHOLDER.findall(self.prompt)))

    @property
    def json_fields(self) -> list[str]:
        """Fields of the samples' json that the prompt takes."""
        return [name.partition(":")[2] for name in self.placeholders if name.startswith("json:")]

    @property
    def work_folder(self) -> str:
        """`work`, or its default."""
        return self.work or f"{self.lora.rstrip('/')}-work"

    @property
    def moderate_step(self) -> int:
        """Steps after which the moderate file is taken; at least 1, and fewer than all."""
        return min(max(1, round(self.moderate_at * self.steps)), self.steps - 1)


class LoraManifest(Receipt):
    """What a folder's LoRA files are. Created once; a job with another identity is refused."""

    schema_version: Literal[1] = SCHEMA_VERSION
    gatehouse: str
    """Version that began the folder."""
    identity: dict[str, Any]
    """All that the weights depend on."""
    images: list[str]
    """The drawn images, as SHARD/KEY."""
    spec: dict[str, Any]
    """The full spec of the job that began the folder."""
    libraries: dict[str, str]

    @property
    def fingerprint(self) -> str:
        """Hash of the identity; every file carries it."""
        return fingerprint(self.identity)
