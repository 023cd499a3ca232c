"""GATE's spec, and the selection that it writes.

    OUT/
      selection.json     which techniques suppress content shift, and the feature groups to extract
      report.html        the same to look at; one file, needs no network

`gatehouse extract` takes a selection where it takes groups: `groups: OUT/selection.json`.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field, field_validator, model_validator

from schemas.groups import Tap, check_placeholders
from schemas.model import ImageSize, Model, Name, Url
from schemas.receipts import Receipt
from schemas.spec import Backbone, Cluster, Input
from schemas.techniques import Technique

SELECTION: Final = "selection.json"
REPORT: Final = "report.html"
PLAIN: Final = "plain"
"""Name of the feature group without any technique."""

Reading = Literal["literal", "own", "shape"]
"""How Eq. 1 and Eq. 2 are read; see `pipeline.gate.readings`."""
Verdict = Literal["suppresses", "no effect", "harms"]


class Candidate(Model):
    """A technique, or several together, that may suppress content shift."""

    name: Name
    prompt: str | None = None
    """Fixed text or a template, as a group's; default: the plain prompt."""
    techniques: list[Technique] = Field(default=[])

    @field_validator("prompt")
    @classmethod
    def _placeholders(cls, value: str | None) -> str | None:
        return value if value is None else check_placeholders(value)


class Img2Img(Model):
    """The qualitative guideline: repaint images without and with each candidate, from the same noise."""

    images: int = Field(default=16, ge=2)
    """How many of the drawn ones, evenly spaced."""
    strength: float = Field(default=0.8, gt=0, le=1)
    """Share of the noise schedule that is repainted; high, as the paper asks."""
    steps: int = Field(default=20, ge=1)
    """Of DDIM over the whole schedule."""
    guidance: float = Field(default=3.0, ge=1)
    """Classifier-free; a candidate's own guidance takes its place."""
    image_encoder: Url | None = None
    """A folder or hub id of a CLIPVisionModelWithProjection: adds the cosine of its embeddings to the measures."""
    image_encoder_revision: str | None = None
    """Commit of a hub id; required for one."""


class GateSpec(Model):
    """One GATE job."""

    version: Literal[1]
    """Of this schema."""
    out: Url
    """A local folder or an S3 prefix for `selection.json` and `report.html`."""
    input: Input
    """As in an extract spec."""
    image_size: ImageSize
    """[H, W] in pixels, as features will be extracted at."""
    fit: Literal["stretch", "crop", "pad"] = "stretch"
    backbone: Backbone = Backbone()
    images: int = Field(default=32, ge=2)
    """How many are drawn from the shards, by `seed`."""
    seed: int = 0
    """Of the drawn images and of all noise."""
    taps: str | list[str | Tap] = "legacy"
    """As a group's. `attn` has no Score: its channels are tokens of the prompt."""
    prompt: str = "a photo"
    """The plain prompt."""
    t: int = Field(default=50, ge=1, lt=1000)
    """Noise at which candidates are judged and features will be extracted, in thousandths."""
    anchor_t: int = Field(default=200, ge=2, lt=1000)
    """Noise of Eq. 2's anchor, a plain feature with a stronger shift; above `t`."""
    times: list[Annotated[int, Field(ge=1, lt=1000)]] = Field(default=[25, 50, 100, 200])
    """For the curve of Score against t; `t` is added where it lacks."""
    candidates: list[Candidate] | None = None
    """Default: what the backbone and the shards offer; see `pipeline.gate.candidates`."""
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    """Of the intervals of all single candidates together, by one reading; of those of all combinations likewise."""
    reading: Reading = "own"
    """Which reading of Score decides; the others are reported beside it."""
    budget: float = Field(default=4.0, gt=0)
    """Cost of the feature groups to extract, in that of one plain group."""
    most_groups: int = Field(default=3, ge=1)
    """Feature groups to extract, at most."""
    img2img: Img2Img | None = Img2Img()
    """null leaves the qualitative guideline out."""
    cluster: Cluster = Cluster()

    @model_validator(mode="after")
    def _consistent(self) -> GateSpec:
        if self.anchor_t <= self.t:
            raise ValueError(f"anchor_t is {self.anchor_t}; the anchor's noise must be above t, {self.t}")
        names = [one.name for one in self.candidates or ()]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"two candidates are named {twice!r}; give each a name of its own")
        if PLAIN in names:
            raise ValueError(f"a candidate is named {PLAIN!r}, which is the feature without any technique")
        return self

    @property
    def all_times(self) -> list[int]:
        """`times`, `t` and `anchor_t`, ascending."""
        return sorted({*self.times, self.t, self.anchor_t})


class Estimate(Receipt):
    """A mean over images, and its interval."""

    mean: float
    low: float
    high: float


class Judged(Receipt):
    """What was found of one candidate, or of a combination."""

    name: str
    candidates: list[str]
    """Those combined; one for a candidate by itself."""
    verdict: Verdict
    """By the reading that decides."""
    gain: dict[str, Estimate]
    """By reading: Score minus that of the plain feature at the same t and noise, the mean of all taps."""
    score: dict[str, Estimate]
    """By reading: Score itself."""
    cost: float
    """Measured, in seconds an image."""
    similarity: dict[str, Estimate] | None = None
    """By measure: how much closer Img2Img with it comes to the input than without; None where it was not made."""
    closer: bool | None = None
    """What these say together; None where they say nothing clear."""


class Selection(Receipt):
    """`selection.json`."""

    schema_version: Literal[1] = 1
    gatehouse: str
    """Version that wrote it."""
    backbone: str
    """Fingerprint of its files; extraction refuses another."""
    reading: Reading
    confidence: float
    plain_cost: float
    """Of the plain feature, in seconds an image."""
    judged: list[Judged]
    """Candidates in the order of the spec, then combinations."""
    groups: list[dict[str, Any]]
    """The feature groups to extract, as a spec has them."""
    images: list[str]
    """Those drawn, as SHARD/KEY."""
    usable: int
    """How many of these have a Score: an image without edges has none."""
    repainted: int = 0
    """How many of these Img2Img was made of."""
    spec: dict[str, Any]
    """The full spec of the job."""
