"""A folder is one head's for ever."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline import storage
from pipeline.heads.folder import HeadFolder, make_manifest, split_name
from pipeline.heads.problem import Problem, open_problem
from schemas.head import MANIFEST, RESULT, RESULTS, HeadManifest, SplitResult
from tests.labelled import GROUPS, IDS, TAPS, spec_of


def problem_of(labelled: Path, **changes: Any) -> Problem:
    return open_problem(spec_of(labelled, Path("unused"), "classification", **changes))


@pytest.fixture(scope="module")
def problem(labelled: Path) -> Problem:
    return problem_of(labelled)


@pytest.fixture
def folder(tmp_path: Path) -> HeadFolder:
    return HeadFolder(f"{tmp_path}/head/")


def test_the_manifest(problem: Problem) -> None:
    """Weights carry its fingerprint."""
    found = make_manifest(problem)
    assert found.fingerprint == problem.digest
    assert (found.groups, found.taps, found.classes, found.splits) == (GROUPS, TAPS, IDS, 1)
    assert set(found.shapes) == {f"{group}/{tap}" for group in GROUPS for tap in TAPS}
    assert "torch" in found.libraries
    assert HeadManifest.model_validate_json(found.to_bytes()) == found


def test_claimed_once(folder: HeadFolder, problem: Problem, labelled: Path) -> None:
    """By the same head again and again; another is refused, with what differs."""
    manifest = make_manifest(problem)
    assert folder.manifest(missing_ok=True) is None
    folder.check_same(manifest)
    for _ in range(2):
        folder.claim(manifest)
    assert folder.manifest() == manifest
    other = make_manifest(problem_of(labelled, task={"steps": 41}, features={"groups": GROUPS[:1]}))
    message = (
        r"holds another head than this spec describes:\n  shapes\.noisy/[\s\S]*"
        r"features\.groups: the folder has None, the spec \['plain'\]\n  task\.steps: the folder has 40, the spec 41"
    )
    for refuse in (folder.check_same, folder.claim):
        with pytest.raises(ValueError, match=message):
            refuse(other)
    assert folder.manifest() == manifest


def test_two_claim_at_once(
    folder: HeadFolder, problem: Problem, labelled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both have seen an empty folder; one of them wins, and the other is told."""
    one, other = make_manifest(problem), make_manifest(problem_of(labelled, task={"steps": 41}))
    create = storage.create

    def late(fs: Any, path: str, data: bytes) -> bool:
        create(fs, path, one.to_bytes())
        return create(fs, path, data)

    monkeypatch.setattr(storage, "create", late)
    folder.claim(one)
    assert folder.manifest() == one
    Path(folder.url, MANIFEST).unlink()
    with pytest.raises(ValueError, match="holds another head"):
        folder.claim(other)


def test_no_head_and_one_of_another_release(folder: HeadFolder, problem: Problem) -> None:
    with pytest.raises(
        ValueError, match=r"no head at .*/head: there is no head\.json; `gatehouse train-head` makes one"
    ):
        folder.manifest()
    document = json.loads(make_manifest(problem).to_bytes())
    folder.write({MANIFEST: json.dumps(document | {"schema_version": 2}).encode()})
    for read in (folder.manifest, lambda: folder.check_same(make_manifest(problem))):
        with pytest.raises(
            ValueError, match=r"head\.json cannot be read \(Input should be 1\); use the release that"
        ):
            read()


def test_results_are_there_or_not(folder: HeadFolder) -> None:
    """A split's are apart from the others'; a folder in place of a file is none."""
    assert folder.results() is None and folder.split(0) is None
    result = SplitResult(split=1, metrics={"mIoU": 0.5}, rows={}, steps=1, best_step=1, seconds={})
    folder.write({f"{split_name(1)}/{RESULT}": result.to_bytes()})
    assert folder.split(1) == result and folder.split(0) is None
    Path(folder.url, RESULTS).write_bytes(b"")
    assert folder.read(f"{RESULTS}/x") is None
