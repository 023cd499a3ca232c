"""Head specs are as strict as the others, and go through JSON, as which processes get them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from schemas.head import HeadManifest, HeadSpec, Task
from schemas.receipts import fingerprint
from schemas.specfile import SpecError, dump, load

SPEC = """\
version: 1
head: out
store: features
labels: {root: shards}
task: {type: label-scarce}
splits: {type: random, train: 30}
"""
TASKS = [one.model_fields["type"].annotation.__args__[0] for one in get_args(get_args(Task)[0])]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "spec.yaml"
    file.write_text(SPEC)
    return file


def read(path: Path, *overrides: str) -> HeadSpec:
    return load(str(path), overrides, HeadSpec)


def test_what_a_short_spec_means(path: Path) -> None:
    spec = read(path)
    assert spec.work_folder == "out-work"
    assert spec.features.groups is None and spec.features.taps is None and spec.features.attention == []
    assert spec.amalgamation.assigners == 2  # the paper takes fewer than three
    assert (spec.unfinished, spec.labels.bad, spec.processes) == ("fail", "fail", 1)
    assert spec.splits.type == "random" and spec.splits.test is None and spec.splits.count == 5


@pytest.mark.parametrize("task", TASKS)
def test_every_task_survives_being_written(path: Path, task: str) -> None:
    """As YAML, and as the JSON that training processes get."""
    validation = "'b*'" if task == "correspondence" else "0.1"
    splits = f"splits={{type: shards, train: 'a*', validation: {validation}}}"
    spec = read(path, f"task.type={task}", splits)
    assert HeadSpec.model_validate(spec.model_dump(mode="json")) == spec
    path.write_text(dump(spec))
    assert read(path) == spec


def test_the_tasks() -> None:
    assert TASKS == ["label-scarce", "segmentation", "correspondence", "classification"]


def test_a_share_for_validation_is_told_from_a_pattern(path: Path) -> None:
    shards = "splits={type: shards, validation: %s}"
    assert read(path, shards % "0.2").splits.model_dump()["validation"] == 0.2
    assert read(path, shards % "'0.2'").splits.model_dump()["validation"] == "0.2"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("labels.classes=0", r"labels\.classes"),
        ("labels.classes=[]", r"labels\.classes"),
        ("labels.ignore=-1", r"labels\.ignore"),
        ("labels.bad=drop", r"labels\.bad"),
        ("splits.seed=-1", r"splits\..*seed"),
        ("splits.train=0", r"splits\..*train"),
        ("splits.count=0", r"splits\..*count"),
        ("splits={type: shards, validation: 0.0}", r"splits\..*validation"),
        ("splits={type: shards, validation: 1.0}", r"splits\..*validation"),
        ("splits={type: folders}", "splits"),
        ("task.type=detection", "task"),
        ("task.heads=2", r"task\..*heads"),
        ("features.groups=[]", r"features\.groups"),
        ("amalgamation.assigners=17", r"amalgamation\.assigners"),
        ("store='s3://key:secret@bucket/x'", "credentials"),
        ("version=2", "version"),
    ],
)
def test_what_is_wrong_is_named(path: Path, override: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        read(path, override)


def test_checkpoints_need_a_local_folder(path: Path) -> None:
    with pytest.raises(SpecError, match=r"head is the URL 's3://bucket/head'.*give one as `work`"):
        read(path, "head='s3://bucket/head'")
    assert read(path, "head='s3://bucket/head'", "work=here").work_folder == "here"
    for work in ("s3://bucket/work", ""):
        with pytest.raises(SpecError, match=f"work is '{work}'; allowed is a local folder"):
            read(path, f"work='{work}'")


def test_processes_share_a_batch_evenly(path: Path) -> None:
    """Else the mean of their gradients would not be that of the batch."""
    with pytest.raises(SpecError, match=r"task\.batch_size is 6, which 4 processes cannot share evenly"):
        read(path, "processes=4")
    assert read(path, "processes=4", "task.batch_size=8").processes == 4


def test_a_fingerprint_is_that_of_the_identity_alone() -> None:
    document: dict[str, Any] = {
        "gatehouse": "0",
        "identity": {"a": [1, 2.5], "b": None},
        "shapes": {"g/t": [1, 2, 3]},
        "groups": ["g"],
        "taps": ["t"],
        "classes": [],
        "splits": 1,
        "spec": {},
        "libraries": {},
    }
    one, other = (
        HeadManifest(**document),
        HeadManifest(**document | {"gatehouse": "1", "spec": {"head": "x"}}),
    )
    assert one.fingerprint == other.fingerprint == fingerprint(document["identity"])
    assert HeadManifest.model_validate_json(one.to_bytes()).fingerprint == one.fingerprint
    assert HeadManifest(**document | {"identity": {"a": [1, 2]}}).fingerprint != one.fingerprint


@pytest.mark.parametrize("splits", ["{type: random, train: 30}", "{type: shards, validation: 0.1}"])
def test_pairs_are_not_drawn_at_random(path: Path, splits: str) -> None:
    """A pair of the test would show images of training."""
    with pytest.raises(SpecError, match=r"splits of correspondence are files of pairs.*give type: shards"):
        read(path, "task.type=correspondence", f"splits={splits}")


@pytest.mark.parametrize("name", ["groups", "taps", "attention"])
def test_nothing_is_read_twice(path: Path, name: str) -> None:
    with pytest.raises(SpecError, match=rf"features.{name} has 'a' twice; name each once"):
        read(path, f"features={{{name}: [a, b, a]}}")
