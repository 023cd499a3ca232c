"""The extract job's spec: one versioned YAML file, checked before anything starts.

Every field is documented where it is declared; those of feature groups are in `schemas.groups`. `schemas.specfile`
reads the file and words the errors; tap names are checked against the backbone's own config by `schemas.taps`, since
they depend on it.
"""

from __future__ import annotations

import itertools
import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from schemas.groups import PLACEHOLDER, Group
from schemas.model import Dtype, ImageSize, Model, Url
from schemas.techniques import ControlNet

IMAGE_FIELDS = ("jpg", "jpeg", "png", "webp")


class Input(Model):
    """Where the images are."""

    shards: Url | list[Url]
    """Path, glob, brace pattern or a list of these, on any fsspec URL."""
    root: Url | None = None
    """A shard's id is its path under this URL. Default: the longest folder that all patterns share before any
    wildcard. State it when shards of several folders will join one store over time."""
    image_field: str | list[str] = Field(default=list(IMAGE_FIELDS))
    """Tar extension of the image, or several in order of preference (`scene.seg.png` has `seg.png`)."""
    caption_field: str | None = "txt"
    """`txt` for a text member, `json:FIELD` for a field of the sample's json, null for no captions."""
    captions: Url | None = None
    """Folder that `gatehouse caption` wrote. Its captions are used where `caption_field` finds none, or alone where
    that is null."""
    max_pixels: int = Field(default=100_000_000, gt=0)
    """Images that declare more pixels than this are not decoded (decompression bombs)."""
    max_member_bytes: int = Field(default=256 * 2**20, gt=0)
    """Tar members larger than this many bytes are not read into memory."""

    @field_validator("shards", "image_field")
    @classmethod
    def _not_empty(cls, value: str | list[str]) -> str | list[str]:
        if not value or not all(value):
            raise ValueError("must name at least one, and none may be empty")
        return value

    @field_validator("caption_field")
    @classmethod
    def _caption_field(cls, value: str | None) -> str | None:
        if value is not None and value != "txt" and not re.fullmatch(r"json:.+", value):
            raise ValueError(f"is {value!r}; allowed are 'txt', 'json:FIELD' and null")
        return value

    @property
    def image_fields(self) -> list[str]:
        """Image extensions, most preferred first."""
        return [self.image_field] if isinstance(self.image_field, str) else list(self.image_field)


class Backbone(Model):
    """The frozen diffusion model, and how it is run."""

    source: Url = "embedded"
    """A diffusers folder (path or fsspec URL), a hub id `owner/name`, a single .safetensors checkpoint, or
    `embedded`."""
    revision: str | None = None
    """Commit of a hub id; required for one, so that a job means the same tomorrow."""
    config: Url | None = None
    """Of a single-file checkpoint: a diffusers folder of the same architecture, for its configs and tokenizers (the
    weights in it are not read). Required for one, refused for any other source."""
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    """Of computation. What is stored is set under `output`."""
    batch_size: int = Field(default=8, ge=1)
    """Images a forward pass; part of the store's identity, since kernels may depend on it."""


class Scores(Model):
    """What the Score of a row (the paper's Eq. 2) is measured against; see `pipeline.scores`.

    It takes passes beside those of the groups: one of each group without noise, and two for the anchor, with noise and
    without. What groups share is computed once, so for groups of one seed the anchor's two serve all; `--dry-run` says
    how many there are.
    """

    prompt: str = "a photo"
    """Of the anchor, fixed text."""
    anchor_t: int = Field(default=200, ge=1, lt=1000)
    """Noise of the anchor, in thousandths, counted as a group's `t`: stronger than any of the groups' for Scores that
    are positive."""

    @field_validator("prompt")
    @classmethod
    def _no_template(cls, value: str) -> str:
        if PLACEHOLDER.search(value):
            raise ValueError(f"is {value!r}; it is one text for all samples, without placeholders")
        return value


class Output(Model):
    """What is stored, and how."""

    dtype: Dtype = "float16"
    """Of stored features; a tap may ask for its own."""
    maps: bool = True
    """Store feature maps [C, h, w] in Zarr."""
    pooled: bool = True
    """Store each map's mean over h and w, float32 [C], in Parquet."""
    scores: Scores | None = None
    """Keep in the index how little each row of each group has shifted; `{}` for the defaults."""
    compression_level: int = Field(default=1, ge=0, le=9)
    """Of zstd behind a bit shuffle; 0 stores raw bytes. Higher levels cost much and save little: features are noisy
    floats (`make bench` measures it)."""
    block_bytes: int = Field(default=256 * 2**20, gt=0)
    """Uncompressed bytes of the rows that an actor assembles at once, over all arrays; it sets the rows of an
    output shard. An actor holds up to three such blocks."""


class Tiles(Model):
    """Overlapping tiles of a large picture, each a pass of its own, laid together in one map."""

    size: Annotated[list[int], Field(min_length=2, max_length=2)]
    """[H, W] of a tile in pixels."""
    overlap: int = Field(default=64, ge=0)
    """Least overlap of neighbours in pixels; where tiles overlap, their features are blended linearly."""


class Cluster(Model):
    """What the job may use. None of it changes a stored value, but for `cpus_per_actor` on a CPU: with another number
    of threads, values are equal within the bound that schemas/README.md states."""

    address: Url | None = None
    """Ray address; default: `RAY_ADDRESS`, else a Ray of its own on this machine."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`cuda` asks Ray for GPUs even where none exist yet, `cpu` never, `auto` takes what the cluster has."""
    actors: int | None = Field(default=None, ge=1)
    """Default: one a GPU, or as many as the CPUs hold."""
    cpus_per_actor: int = Field(default=1, ge=1)
    """CPU cores an actor, and threads its forward pass uses on a CPU."""
    max_requests: int = Field(default=64, ge=1)
    """Simultaneous storage requests, over all actors."""
    max_actor_bytes: int | None = Field(default=None, gt=0)
    """Resident bytes of main memory above which an actor finishes what it has in hand and is replaced."""
    stall_timeout_s: float = Field(default=300.0, gt=0)
    """Seconds without an answer or any progress after which an actor that has work is replaced."""
    stop_grace_s: float = Field(default=20.0, ge=0)
    """Seconds that shards in work get to finish when the job is told to stop."""
    lease_ttl_s: float = Field(default=60.0, ge=1)
    """Seconds without a sign of life after which other extract jobs on the store take this one for dead. It gives
    three signs in that time."""


class Finding(Model):
    """What a selection says of one candidate, in short."""

    name: str
    verdict: str
    gain: float
    """Mean over images, by the reading that decided."""
    low: float
    high: float
    """Of its interval."""


class SelectionRef(Model):
    """The selection that groups came from."""

    url: Url
    sha256: str
    """Of the file."""
    backbone: str
    """Fingerprint of the files of the backbone that it was made for."""
    backbone_source: str
    reading: str
    """Of Score, by which it decided."""
    confidence: float
    judged: list[Finding]


class ExtractSpec(Model):
    """One extract job."""

    version: Literal[1]
    """Of this schema."""
    store: Url
    """URL of the feature store: a local folder or an S3 prefix."""
    input: Input
    image_size: ImageSize
    """[H, W] in pixels that the network sees."""
    fit: Literal["stretch", "crop", "pad"] = "stretch"
    """How an image becomes `image_size`, bicubic: `stretch` (the paper), `crop` scales its shorter side and takes the
    centre, `pad` scales its longer side and centres it on grey. The index says where a picture lies (`box`); padding
    is left out of pooled vectors."""
    tiles: Tiles | None = None
    """Compute large pictures in overlapping tiles."""
    backbone: Backbone = Backbone()
    groups: Annotated[list[Group], Field(min_length=1)]
    """A list, or the path or URL of a `selection.json`, whose groups take its place when the file is read."""
    selection: SelectionRef | None = None
    """Where `groups` came from, if it was a selection. Filled in when the file is read, and not to be given."""
    seed: int = 0
    """Of all random numbers, with each group's own seed, the shard's id and the sample's key."""
    output: Output = Output()
    cluster: Cluster = Cluster()
    max_bad_fraction: float = Field(default=0.1, ge=0, le=1)
    """A job with a larger share of bad samples fails; what is stored stays."""

    @model_validator(mode="after")
    def _consistent(self) -> ExtractSpec:
        names = [group.name for group in self.expanded_groups]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"two groups are named {twice!r}; a group's name is its folder in the store")
        if not (self.output.maps or self.output.pooled):
            raise ValueError("output.maps and output.pooled are both false: nothing would be stored")
        uses_caption = any("caption" in group.placeholders for group in self.groups)
        if uses_caption and self.input.caption_field is None and self.input.captions is None:
            raise ValueError(
                "a group's prompt has {caption}, but input.caption_field is null and input.captions not given"
            )
        images = {field.lower() for field in self.input.image_fields}
        if both := next((field for field in self.control_fields if field in images), None):
            raise ValueError(
                f"a ControlNet takes {both!r} as its control image, which input.image_field lists as the image itself;"
                " give input.image_field without it"
            )
        if self.tiles is not None:
            _check_tiles(self.tiles, self.image_size)
        return self

    @property
    def expanded_groups(self) -> list[Group]:
        """Groups with a single time each."""
        return list(itertools.chain.from_iterable(group.at_each_time() for group in self.groups))

    @property
    def json_fields(self) -> list[str]:
        """Fields of the samples' json that prompts take."""
        names = [name for group in self.groups for name in group.placeholders]
        return list(dict.fromkeys(name.partition(":")[2] for name in names if name.startswith("json:")))

    @property
    def control_fields(self) -> list[str]:
        """Tar extensions of the control images that techniques take, in lower case."""
        techniques = [one for group in self.groups for one in group.techniques]
        fields = [one.field for one in techniques if isinstance(one, ControlNet)]
        return list(dict.fromkeys(field for field in fields if field is not None))


def _check_tiles(tiles: Tiles, image_size: list[int]) -> None:
    for side, whole in zip(tiles.size, image_size, strict=True):
        if side < 8 or side % 8 or side > whole or tiles.overlap >= side:
            raise ValueError(
                f"tiles.size is {tiles.size} with overlap {tiles.overlap}; sides must be multiples of 8, larger than"
                f" the overlap and no larger than image_size {image_size}"
            )
