"""The head job's spec, and what it writes: a small network trained on stored features and on labels of their samples.

HEAD/
  head.json                     what the head is; created once, before training
  split-0/head.safetensors      its weights, one folder a split
  split-0/*.png                 plots
  split-0/result.json           what it is worth on the rows that the split keeps for the test; written last
  results.json                  mean and standard deviation over the splits
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field, model_validator

from schemas.model import Model, Url
from schemas.receipts import Receipt, fingerprint

SCHEMA_VERSION: Final = 1
MANIFEST, RESULTS, RESULT, WEIGHTS = "head.json", "results.json", "result.json", "head.safetensors"


class Labels(Model):
    """What the samples' shards say of the stored rows."""

    root: Url
    """Folder or URL under which the shards lie by their ids, as extraction read them; `embedded` for those in the
    package."""
    field: str | None = None
    """Tar extension of the label, or `json:FIELD`. Default by task: `seg.png` (a mask of class ids), `cls` (a class
    id); correspondence has its labels in the files of pairs."""
    classes: Annotated[int, Field(ge=1)] | Annotated[list[str], Field(min_length=1)] | None = None
    """How many classes, or their names by id. Default: those of `dataset.json` under `root`, which `gatehouse shard
    --dataset` writes."""
    ignore: int = Field(default=255, ge=0)
    """Id of pixels that have no class."""
    bad: Literal["fail", "skip"] = "fail"
    """Rows whose label is missing, damaged, of another size than the image, or of a class that there is not: the job
    refuses them before it trains, or leaves them out and counts them."""


class Features(Model):
    """Which of a store's arrays the head reads; the others are never touched."""

    groups: Annotated[list[str], Field(min_length=1)] | None = None
    """Feature groups to amalgamate (Eq. 4). Default: all that store `taps`."""
    taps: Annotated[list[str], Field(min_length=1)] | None = None
    """Sites, the same in every group. Default: all maps [C, h, w] that every group stores, but for attention."""
    attention: list[str] = Field(default=[])
    """Attention features, as `group/tap`: concatenated, not amalgamated."""


class Amalgamation(Model):
    """Weights for the feature groups, by image (Eq. 3 to 5)."""

    assigners: int = Field(default=2, ge=0, le=16)
    """n, the weight assigners; 0 lays the groups' channels side by side without weights. The paper takes fewer than 3.
    Without effect where there is one group."""
    sparsity: float = Field(default=0.01, ge=0)
    """g1 of Eq. 5: rewards weights that prefer few groups."""
    diversity: float = Field(default=0.01, ge=0)
    """g2 of Eq. 5: rewards assigners that differ."""


class RandomSplits(Model):
    """Rows drawn at random by the seed, several times; not for pairs, which share images."""

    type: Literal["random"]
    count: int = Field(default=5, ge=1)
    """How many splits."""
    train: int = Field(ge=1)
    """Rows to train on."""
    validation: int = Field(default=0, ge=0)
    """Rows that training is stopped by; 0 trains for all steps."""
    test: int | None = Field(default=None, ge=1)
    """Rows to test on. Default: all others."""
    seed: int = Field(default=0, ge=0)


class ShardSplit(Model):
    """One split, by the shards' ids; what no pattern names is not used."""

    type: Literal["shards"]
    train: str = "train*"
    """Pattern of shard ids (of correspondence: of the names of files of pairs)."""
    validation: str | Annotated[float, Field(gt=0, lt=1)] | None = None
    """Pattern too, or the share of the training rows that is taken for it; null trains for all steps."""
    test: str = "test*"
    seed: int = Field(default=0, ge=0)
    """Of what is random: the first weights, the order of rows, a share for validation."""


class _Trained(Model):
    """How a head is trained: AdamW, on rows drawn without end."""

    steps: int = Field(default=2000, ge=1)
    """At most; fewer where the validation rows say so."""
    batch_size: int = Field(default=8, ge=1)
    """Rows a step, over all processes."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """The highest; reached after a twentieth of the steps, falls to 0 over the second half."""
    weight_decay: float = Field(default=1e-2, ge=0)
    validate_every: int = Field(default=100, ge=1)
    """Steps between looks at the validation rows, and between checkpoints."""
    patience: int = Field(default=5, ge=1)
    """Looks without a better one after which training ends; the best one's weights are the result."""


class LabelScarce(_Trained):
    """Segmentation from few labelled images: an ensemble of pixel classifiers that vote."""

    type: Literal["label-scarce"]
    members: int = Field(default=10, ge=1)
    """Classifiers, each with first weights and pixels of its own."""
    pixels: int = Field(default=256, ge=1)
    """Of each image of a step, for each member."""
    steps: int = Field(default=1000, ge=1)
    batch_size: int = Field(default=6, ge=1)


class Segmentation(_Trained):
    """Segmentation with a decoder: UPerNet."""

    type: Literal["segmentation"]
    width: int = Field(default=256, ge=8, multiple_of=8)
    """Channels inside the decoder."""
    steps: int = Field(default=20_000, ge=1)
    learning_rate: float = Field(default=3e-4, gt=0)
    validate_every: int = Field(default=1000, ge=1)


class Correspondence(_Trained):
    """Which point of another image shows the same: the nearest neighbour among descriptors."""

    type: Literal["correspondence"]
    head: Literal["nn", "conv"] = "nn"
    """`nn` compares features as they are (with several groups, amalgamated), `conv` behind one 3 x 3 convolution after
    each assigner."""
    channels: int = Field(default=256, ge=1)
    """Of each convolution's result."""
    temperature: float = Field(default=0.05, gt=0)
    """Of the softmax over places."""
    alpha: float = Field(default=0.1, gt=0, le=1)
    """A point is right within this share of the longer side of the image, or of the object's box."""
    pairs: str = "pairs-*.jsonl"
    """Files of pairs: a name or a pattern of names under `labels.root`, or a path or URL that ends in one."""
    batch_size: int = Field(default=4, ge=1)
    """Pairs a step."""


class Classification(_Trained):
    """One class an image, by a linear layer on pooled vectors."""

    type: Literal["classification"]
    batch_size: int = Field(default=64, ge=1)


class Loading(Model):
    """How features are read. But for `window`, none of it changes a result."""

    workers: int = Field(default=0, ge=0)
    """Processes that read ahead; 0 for a thread."""
    window: int | None = Field(default=None, ge=1)
    """Blocks of the store that are shuffled together and read at once; null shuffles all rows. For stores of small rows
    on S3 that do not fit in memory: 16."""
    cache_bytes: int = Field(default=4 * 2**30, ge=0)
    """Rows stay in memory up to this many bytes, in each process that reads."""


Task = Annotated[LabelScarce | Segmentation | Correspondence | Classification, Field(discriminator="type")]
Splits = Annotated[RandomSplits | ShardSplit, Field(discriminator="type")]


class HeadSpec(Model):
    """One head."""

    version: Literal[1]
    """Of this schema."""
    head: Url
    """Folder or URL to write to."""
    work: str | None = None
    """Local folder for checkpoints and logs; default: `head` with `-work` behind it. Required where `head` is a URL;
    shared by all nodes where `processes` are on several."""
    store: Url
    """Folder or URL of the features."""
    unfinished: Literal["fail", "use"] = "fail"
    """What to do with a store of which some shards are not done: refuse it, or train on what is committed."""
    labels: Labels
    features: Features = Features()
    amalgamation: Amalgamation = Amalgamation()
    task: Task
    splits: Splits
    loading: Loading = Loading()
    processes: int = Field(default=1, ge=1)
    """That train together, each on its share of a batch, by Ray Train where there are several."""
    address: Url | None = None
    """Ray address for several processes; default: `RAY_ADDRESS`, else a Ray of its own on this machine."""
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @model_validator(mode="after")
    def _consistent(self) -> HeadSpec:
        if self.work is None and "://" in self.head:
            raise ValueError(
                f"head is the URL {self.head!r}, and checkpoints need a local folder: give one as `work`"
            )
        if self.work is not None and ("://" in self.work or not self.work):
            raise ValueError(
                f"work is {self.work!r}; allowed is a local folder: checkpoints are replaced in place"
            )
        if self.task.batch_size % self.processes:
            raise ValueError(
                f"task.batch_size is {self.task.batch_size}, which {self.processes} processes cannot share evenly; give"
                " a multiple"
            )
        for name in ("groups", "taps", "attention"):
            given = getattr(self.features, name) or []
            if twice := next((one for one in given if given.count(one) > 1), None):
                raise ValueError(f"features.{name} has {twice!r} twice; name each once")
        if isinstance(self.task, Correspondence):
            self._check_pairs()
        return self

    def _check_pairs(self) -> None:
        """Pairs share images, so that a random part of them is no part of its own."""
        if isinstance(self.splits, RandomSplits) or isinstance(self.splits.validation, float):
            raise ValueError(
                "splits of correspondence are files of pairs, since pairs that are drawn at random share images: give"
                " type: shards, with a file of pairs as train, as test and, if any, as validation"
            )

    @property
    def work_folder(self) -> str:
        """`work`, or its default."""
        return self.work or f"{self.head.rstrip('/')}-work"


class HeadManifest(Receipt):
    """What a head is. Created once; a job with another identity is refused."""

    schema_version: Literal[1] = SCHEMA_VERSION
    gatehouse: str
    """Version that began it."""
    identity: dict[str, Any]
    """All that its weights depend on."""
    shapes: dict[str, list[int]]
    """Of the arrays that it reads, by `group/tap`."""
    groups: list[str]
    taps: list[str]
    classes: list[str]
    """Names by id; empty for correspondence."""
    splits: int
    spec: dict[str, Any]
    """The full spec of the job that began it."""
    libraries: dict[str, str]

    @property
    def fingerprint(self) -> str:
        """Hash of the identity; every file of weights carries it."""
        return fingerprint(self.identity)


class SplitResult(Receipt):
    """What one split's head is worth."""

    split: int
    metrics: dict[str, float]
    """0 to 1; the first is the main one."""
    by_class: dict[str, float] = Field(default={})
    """Intersection over union (segmentation), accuracy (classification) or PCK (correspondence, by category)."""
    weights: list[list[list[float]]] | None = None
    """Mean weights over the test rows, [level, assigner, group]."""
    rows: dict[str, int]
    """Used for train, validation, test."""
    steps: int
    """Trained."""
    best_step: int
    """Whose weights are the result."""
    seconds: dict[str, float]
    """For training and for the test."""


class Results(Receipt):
    """Over all splits."""

    schema_version: Literal[1] = SCHEMA_VERSION
    head: str
    """Fingerprint of the head."""
    task: str
    metrics: dict[str, list[float]]
    """Mean and standard deviation over the splits, 0 to 1; the deviation is 0 for one split."""
    skipped: dict[str, int]
    """Rows left out, by reason."""
    splits: list[SplitResult]
