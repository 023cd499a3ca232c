"""The specs of the study's heads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pipeline.benefit.heads import KINDS, Study, specs
from pipeline.benefit.rows import Row

STUDY = Study(Path("out"), "embedded", splits=3, train=60, test=120, steps=250, members=5, images=32)
BOTH = Row("both", ("plain", "caption"))


def test_every_split_of_every_kind_has_a_head_of_its_own() -> None:
    folders = [spec.head for kind in KINDS for spec in specs(STUDY, kind, BOTH, None)]
    assert len(set(folders)) == len(folders) == 1 + 3 + 3


def test_pairs_are_tested_on_files_that_are_not_trained_on() -> None:
    for split, spec in enumerate(specs(STUDY, "correspondence", BOTH, None)):
        assert spec.splits.type == "shards" and spec.splits.seed == split
        assert (spec.splits.train, spec.splits.test) == (f"train-{split}.jsonl", f"test-{split}.jsonl")


def test_what_is_not_regularised_differs_in_that_alone() -> None:
    (ours,) = specs(STUDY, "segmentation", BOTH, None)
    (theirs,) = specs(STUDY, "segmentation", replace(BOTH, regularised=False), None)
    assert theirs.amalgamation.sparsity == theirs.amalgamation.diversity == 0
    assert theirs.model_copy(update={"amalgamation": ours.amalgamation}) == ours


def test_pixels_need_rows_and_labels_only() -> None:
    """Their maps are replaced; what is read of the store beside them is one group's."""
    (spec,) = specs(STUDY, "segmentation", Row("raw pixels", ("raw",), "raw"), None)
    assert spec.features.groups == ["plain"] and spec.store.endswith("features")
