"""The caption job's spec, and what it writes: captions for shards that have none.

    CAPTIONS/
      captions.json            what the captions are: model, prompt, settings; created once
      shards/DIGEST.parquet    create-only: one record a sample of an input shard

DIGEST names the shard, as in a feature store. A file is there whole or not at all, and is never changed: a shard
whose file exists is done. Its Parquet metadata say which shard it was, and under which settings it was captioned.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

import pyarrow as pa
from pydantic import Field, field_validator

from schemas.layout import digest
from schemas.model import Model, Url
from schemas.receipts import Receipt, fingerprint
from schemas.spec import Cluster, Input

SCHEMA_VERSION: Final = 1
MANIFEST = "captions.json"
SHARDS = "shards"


class Pictures(Input):
    """Where the images are; captions that lie beside them are not read."""

    caption_field: None = None
    captions: None = None


class Captioner(Model):
    """An image-to-text model, and how it is run."""

    source: Url
    """A transformers folder (path or fsspec URL) or a hub id `owner/name`, of a model for image-to-text with weights
    as safetensors: BLIP, GIT, ViT-GPT2, Florence-2, PaliGemma, LLaVA and others."""
    revision: str | None = None
    """Commit of a hub id; required for one."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Of computation."""
    batch_size: int = Field(default=8, ge=1)
    """Images a forward pass; part of the captions' identity, since kernels may depend on it."""


class CaptionSpec(Model):
    """One caption job. Captions are deterministic: the likeliest token at each step, nothing is drawn."""

    version: Literal[1]
    """Of this schema."""
    captions: Url
    """Folder or URL to write to; an extract spec reads it as `input.captions`."""
    input: Pictures
    model: Captioner
    image_size: Annotated[list[int], Field(min_length=2, max_length=2)] | None = None
    """[H, W] in pixels that images are stretched to before the model's own processor sees them; default: as they
    are. Models that keep an image's proportions need it, or a batch size of 1: batches hold inputs of one shape."""
    prompt: str | None = None
    """What the model is asked (`Describe the image in one sentence.`), or how its captions begin (`a photo of`), in
    the form that the model was trained on; it does not become part of the caption. Models with a chat template and
    some others need one."""
    max_new_tokens: int = Field(default=50, ge=1)
    """Longest caption, in tokens."""
    num_beams: int = Field(default=1, ge=1)
    """Width of the beam search; 1 is greedy."""
    cluster: Cluster = Cluster()

    @field_validator("image_size")
    @classmethod
    def _positive(cls, value: list[int] | None) -> list[int] | None:
        if value is not None and min(value) < 1:
            raise ValueError(f"is {value}; height and width must be positive")
        return value


class CaptionsManifest(Receipt):
    """What a folder's captions are. Created once; a job with another identity is refused."""

    schema_version: Literal[1] = SCHEMA_VERSION
    gatehouse: str
    """Version that began the folder."""
    identity: dict[str, Any]
    """All that a caption depends on beside the image."""
    spec: dict[str, Any]
    """The full spec of the job that began the folder."""
    libraries: dict[str, str]

    @property
    def fingerprint(self) -> str:
        """Hash of the identity; every file carries it."""
        return fingerprint(self.identity)


def file_name(shard_id: str) -> str:
    """Path of a shard's captions inside the folder."""
    return f"{SHARDS}/{digest(shard_id)}.parquet"


TABLE = pa.schema(
    [
        ("key", pa.string()),  # null in a record that speaks of the shard as such
        ("position", pa.int64()),  # of the sample in its shard
        ("status", pa.string()),  # ok or failed
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("caption", pa.string()),
        ("sha256", pa.string()),  # of the image's bytes
    ]
)
"""Columns of a shard's captions."""
