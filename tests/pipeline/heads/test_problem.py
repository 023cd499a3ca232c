"""What a head is, and what makes a job impossible: all of it known before training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.heads.problem import Problem, open_problem
from pipeline.store import StoreError
from tests.labelled import GROUPS, IDS, MASKS, SHARDS, TAPS, TASKS, spec_of, write_shards


def problem(labelled: Path, task: str = "segmentation", /, **changes: Any) -> Problem:
    return open_problem(spec_of(labelled, Path("unused"), task, **changes))


@pytest.fixture
def copied(labelled: Path, tmp_path: Path) -> Path:
    """A folder with a copy of the labelled store, to be changed; labels stay where they are."""
    shutil.copytree(labelled / "store", tmp_path / "store")
    return tmp_path / "store"


@pytest.mark.parametrize("task", TASKS)
def test_every_task(labelled: Path, task: str) -> None:
    found = problem(labelled, task)
    assert found.choice.groups == tuple(GROUPS) and found.choice.taps == tuple(TAPS)
    assert found.classes == tuple({"classification": IDS, "correspondence": ()}.get(task, MASKS))
    (split,) = found.splits
    of_pairs = task == "correspondence"
    assert split.sizes == {
        "train": 40 if of_pairs else 12,
        "validation": 12 if of_pairs else 4,
        "test": 24 if of_pairs else 8,
    }
    if not of_pairs:
        assert {found.examples.shards[place] for place in split.test} == {"test-0.tar"}


def test_random_splits(labelled: Path) -> None:
    found = problem(labelled, splits={"type": "random", "count": 3, "train": 5, "validation": 2})
    assert [split.sizes for split in found.splits] == [{"train": 5, "validation": 2, "test": 17}] * 3
    with pytest.raises(ValueError, match=r"are 25 rows, and 24 have features and labels"):
        problem(labelled, splits={"type": "random", "train": 24})


def test_the_identity_is_plain_json_without_places(labelled: Path, tmp_path: Path) -> None:
    """Moved shards, another cache or several processes make no other head."""
    one = problem(labelled)
    assert json.loads(json.dumps(one.identity)) == one.identity
    moved = write_shards(tmp_path / "moved")
    other = problem(
        labelled,
        labels={"root": str(moved), "classes": MASKS},
        loading={"workers": 1, "cache_bytes": 0},
        processes=2,
    )
    assert other.digest == one.digest and str(labelled) not in json.dumps(one.identity)
    pairs = problem(labelled, "correspondence")
    path = f"{moved}/pairs-*.jsonl"
    assert problem(labelled, "correspondence", task={"pairs": path}).digest == pairs.digest


@pytest.mark.parametrize(
    "changes",
    [
        {"task": {"steps": 31}},
        {"task": {"width": 24}},
        {"amalgamation": {"assigners": 1}},
        {"features": {"groups": GROUPS[:1]}},
        {"features": {"groups": GROUPS[::-1]}},
        {"splits": {"type": "shards", "seed": 1}},
    ],
)
def test_what_weights_depend_on_makes_another_head(labelled: Path, changes: dict[str, Any]) -> None:
    assert problem(labelled, **changes).digest != problem(labelled).digest


def test_other_features_of_the_same_names_make_another_head(labelled: Path) -> None:
    """As of another backbone, whose arrays have the same shapes."""
    found = problem(labelled)
    before, manifest = found.digest, found.store.manifest
    found.store.manifest = manifest.model_copy(update={"identity": manifest.identity | {"seed": 1}})
    assert found.digest != before


def test_an_unfinished_store_is_refused_or_used(labelled: Path, copied: Path) -> None:
    """A job that was killed, or is still at work, has left no record of its end."""
    shutil.rmtree(copied / "runs")
    with pytest.raises(
        ValueError, match=r"is unfinished: no run over it has ended yet\. Run the extract job .*use to"
    ):
        problem(labelled, store=str(copied))
    assert len(problem(labelled, store=str(copied), unfinished="use").examples) == 24


def test_a_store_with_fewer_shards_is_another_head(labelled: Path, copied: Path) -> None:
    """What is committed later must not slip into a head that is half trained."""
    for path in (copied / "markers").iterdir():
        if json.loads(path.read_text())["shard"] == "train-1.tar":
            path.unlink()
    for path in (copied / "compact").iterdir():
        path.unlink()
    found = problem(labelled, store=str(copied))
    assert len(found.examples) == 24 - len(SHARDS["train-1.tar"])
    assert found.digest != problem(labelled).digest


def test_a_store_of_another_schema_version(labelled: Path, copied: Path) -> None:
    manifest = json.loads((copied / "manifest.json").read_text())
    (copied / "manifest.json").write_text(json.dumps(manifest | {"schema_version": 1}))
    with pytest.raises(StoreError, match="not of schema version 2, the one that this release reads"):
        problem(labelled, store=str(copied))


def test_no_store(labelled: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no feature store at"):
        problem(labelled, store=str(tmp_path / "none"))


def test_processes_that_cannot_share_what_there_is(labelled: Path) -> None:
    """Batches are as large as the training rows where these are fewer, and each process takes as much as another."""
    few = {"type": "random", "count": 1, "train": 3}
    with pytest.raises(ValueError, match=r"processes: 2 cannot share 3 training rows a step evenly"):
        problem(labelled, splits=few, processes=2)
    assert problem(labelled, splits={**few, "train": 5}, processes=2)
