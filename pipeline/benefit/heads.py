"""Heads of the benefit study: one row of its table, trained and tested on every split."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline.benefit.raw import with_pixels
from pipeline.benefit.rows import Row
from pipeline.heads.folder import HeadFolder, make_manifest
from pipeline.heads.problem import open_problem
from pipeline.heads.run import train_splits
from pipeline.scenes.cutouts import CLASSES
from schemas.head import HeadSpec

Kind = Literal["segmentation", "correspondence", "correspondence, conv"]
KINDS: tuple[Kind, ...] = ("segmentation", "correspondence", "correspondence, conv")
METRICS: dict[Kind, str] = {
    "segmentation": "mIoU",
    "correspondence": "PCK@0.1 bbox",
    "correspondence, conv": "PCK@0.1 bbox",
}


@dataclass(frozen=True)
class Study:
    """Where everything of a study lies, and how much of it is done."""

    out: Path
    root: str
    """Of the shards."""
    splits: int
    train: int
    """Rows of a split of segmentation to train on."""
    test: int
    """Rows to test on."""
    steps: int
    members: int
    """Of the ensemble."""
    images: int
    """That GATE draws."""

    def store(self, row: Row) -> str:
        """The features that a row reads."""
        return str(self.out / ("untrained" if row.source == "untrained" else "features"))

    def pairs(self, part: str, split: int) -> Path:
        """File of pairs of cut-outs."""
        return self.out / "pairs" / f"{part}-{split}.jsonl"


def measured(study: Study, kind: Kind, row: Row, taps: list[str] | None, shared: None) -> list[float]:
    """The main metric of a row on every split, 0 to 1; heads that are there already are only read.

    Args:
        study: where and how much.
        kind: of head.
        row: what it reads.
        taps: of each group; None for all.
        shared: nothing; tasks have it.

    Raises:
        ValueError: the study's folder has heads of other settings.
    """
    found: list[float] = []
    for spec in specs(study, kind, row, taps):
        folder, problem = HeadFolder(spec.head), open_problem(spec)
        if row.source == "raw":
            problem = with_pixels(problem, study.root)
        folder.claim(make_manifest(problem))  # refuses heads of other settings
        if (results := folder.results()) is None:
            results = train_splits(problem, folder, Path(spec.work_folder), "cpu", plots=False)
        assert results is not None  # nothing stops it
        found += [one.metrics[METRICS[kind]] for one in results.splits]
    return found


def specs(study: Study, kind: Kind, row: Row, taps: list[str] | None) -> Iterator[HeadSpec]:
    """One job of all splits; of correspondence one a split, whose pairs are files of its own."""
    strength = 0.01 if row.regularised else 0.0
    folder = study.out / "heads" / kind.replace(", ", "-") / "-".join([row.key, *(taps or [])])
    shared: dict[str, Any] = {
        "version": 1,
        "store": study.store(row),
        "labels": {"root": study.root, "classes": list(CLASSES)},
        # Pixels take the place of the plain feature's maps.
        "features": {"groups": ["plain"] if row.source == "raw" else list(row.groups), "taps": taps},
        "amalgamation": {"assigners": 2, "sparsity": strength, "diversity": strength},
        "loading": {"cache_bytes": 2**30},
        "device": "cpu",
    }
    if kind == "segmentation":
        task = {"type": "label-scarce", "steps": study.steps, "members": study.members, "pixels": 64}
        splits = {"type": "random", "count": study.splits, "train": study.train, "test": study.test}
        yield HeadSpec.model_validate(shared | {"head": str(folder), "task": task, "splits": splits})
        return
    for split in range(study.splits):
        names = {part: study.pairs(part, split).name for part in ("train", "test")}
        yield HeadSpec.model_validate(
            shared
            | {
                "head": str(folder / str(split)),
                "task": {
                    "type": "correspondence",
                    "head": "conv" if kind.endswith("conv") else "nn",
                    "channels": 64,
                    "steps": study.steps,
                    "pairs": f"{study.out}/pairs/*-{split}.jsonl",
                },
                "splits": {"type": "shards", **names, "seed": split},
            }
        )
