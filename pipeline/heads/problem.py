"""A head job made concrete: which arrays of the store, which rows with which labels, which splits, which task.

Everything that can be wrong with store, labels and spec is found here, before anything is trained.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.completeness import completeness
from pipeline.heads.choice import Choice, choose
from pipeline.heads.examples import ExampleSet, labelled_rows
from pipeline.heads.names import class_names
from pipeline.heads.pairs import pairs_of
from pipeline.heads.splits import Split, random_splits, shard_split
from pipeline.heads.tasks import make
from pipeline.heads.tasks.base import Task
from pipeline.reader import FeatureStore
from schemas.head import Correspondence, HeadSpec, RandomSplits
from schemas.receipts import fingerprint


@dataclass(frozen=True)
class Problem:
    """What is trained on what."""

    spec: HeadSpec
    store: FeatureStore
    choice: Choice
    classes: tuple[str, ...]
    """Names by id; empty for correspondence."""
    examples: ExampleSet
    splits: tuple[Split, ...]
    task: Task

    @property
    def identity(self) -> dict[str, Any]:
        """All that trained weights depend on."""
        spec = self.spec.model_dump()
        places = {"labels": "root", "task": "pairs"}  # what lies there is in `examples`
        kept = {
            name: {key: value for key, value in spec[name].items() if key != places.get(name)}
            for name in ("labels", "features", "amalgamation", "task", "splits")
        }
        return {
            "store": self.store.manifest.fingerprint,
            "shapes": {name: list(shape) for name, shape in self.choice.shapes.items()},
            "classes": list(self.classes),
            "examples": self.examples.digest,
            "window": self.spec.loading.window,
            **kept,
        }

    @property
    def digest(self) -> str:
        """Hash of the identity."""
        return fingerprint(self.identity)


def open_problem(spec: HeadSpec) -> Problem:
    """Open store and labels, and check that they are what the spec says.

    Raises:
        StoreError: no store, or one of another schema version.
        ValueError: whatever else makes the job impossible.
        OSError: storage failed.
    """
    store = FeatureStore(spec.store)
    choice = choose(store, spec.features, pooled=spec.task.type == "classification")
    if spec.unfinished == "fail" and (gaps := completeness(store).gaps):
        raise ValueError(
            f"store {store.url} is unfinished: {'; '.join(gaps)}. Run the extract job to its end, or give"
            " unfinished: use to train on what is committed"
        )
    if isinstance(spec.task, Correspondence):
        classes: tuple[str, ...] = ()
        examples = pairs_of(store, choice, spec)
    else:
        classes = class_names(spec.labels)
        examples = labelled_rows(store, choice, spec, len(classes))
    return Problem(
        spec, store, choice, classes, examples, _splits(spec, examples), make(spec, choice, classes)
    )


def _splits(spec: HeadSpec, examples: ExampleSet) -> tuple[Split, ...]:
    if isinstance(spec.splits, RandomSplits):
        splits = random_splits(spec.splits, examples.ids)
    else:
        splits = [shard_split(spec.splits, examples.shards)]
    batch = min(spec.task.batch_size, *(len(split.train) for split in splits))
    if batch % spec.processes:
        raise ValueError(
            f"processes: {spec.processes} cannot share {batch} training rows a step evenly, and there are no more;"
            " train on one process, or on more rows"
        )
    return tuple(splits)
