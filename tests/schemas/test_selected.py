"""Groups out of a selection: as if written by hand, with a record of where they came from; or what is wrong with it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import fsspec
import pytest

from pipeline.layouts import wrong_taps
from schemas.captions import CaptionSpec
from schemas.groups import Group
from schemas.spec import ExtractSpec, Finding
from schemas.specfile import SpecError, dump, load
from tests import selections
from tests.engines import group

SPEC = """\
version: 1
store: s
input: {shards: "*.tar"}
image_size: [64, 64]
groups: PATH
"""
GROUPS = [group("caption", prompt="{caption}"), group("plain", t=[50, 100])]
CURE = "; give a list of groups, or the selection.json that `gatehouse gate` wrote"


@pytest.fixture
def url(tmp_path: Path) -> str:
    return selections.write(tmp_path / "gate" / "selection.json", selections.selection(*GROUPS))


def read(tmp_path: Path, groups: str, *overrides: str) -> ExtractSpec:
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC.replace("PATH", groups))
    return load(str(path), overrides)


def problems(tmp_path: Path, groups: str, *overrides: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        read(tmp_path, groups, *overrides)
    return str(caught.value).replace(str(tmp_path) + "/", "").splitlines()


def test_groups_are_those_of_the_selection(tmp_path: Path, url: str) -> None:
    spec = read(tmp_path, url)
    assert spec.groups == [Group.model_validate(one) for one in GROUPS]
    found = spec.selection
    assert found is not None and (found.url, found.backbone) == (url, "0" * 64)
    assert found.sha256 == hashlib.sha256(Path(url).read_bytes()).hexdigest()
    assert (found.backbone_source, found.reading, found.confidence) == ("embedded", "own", 0.95)
    assert found.judged == [Finding(name="caption", verdict="suppresses", gain=0.25, low=0.125, high=0.5)]


def test_from_the_command_line_and_any_file_system(tmp_path: Path, url: str) -> None:
    """An override may name a selection in place of the file's groups, or of another selection that is not there."""
    with fsspec.open("memory://gate/selection.json", "wb") as file:
        file.write(Path(url).read_bytes())
    for before in ("[]", "nowhere.json"):
        spec = read(tmp_path, before, "groups=memory://gate/selection.json")
        assert [one.name for one in spec.groups] == ["caption", "plain"]
        assert spec.selection is not None and spec.selection.url == "memory://gate/selection.json"
    listed = read(tmp_path, url, "groups=[{name: a, taps: legacy, t: 1}]")
    assert [one.name for one in listed.groups] == ["a"] and listed.selection is None


def test_a_spec_with_the_record_is_read_back_from_a_manifest(tmp_path: Path, url: str) -> None:
    spec = read(tmp_path, url)
    assert ExtractSpec.model_validate(json.loads(json.dumps(spec.model_dump(mode="json")))) == spec


def test_a_dumped_spec_has_the_groups(tmp_path: Path, url: str) -> None:
    """It says the same without the selection's file, and nothing of it that could become untrue."""
    spec = read(tmp_path, url)
    path = tmp_path / "dumped.yaml"
    path.write_text(dump(spec))
    Path(url).unlink()
    assert load(str(path)) == spec.model_copy(update={"selection": None})


def test_the_record_is_not_for_users(tmp_path: Path) -> None:
    text = "is filled in when a selection is read; leave it out, and give the selection's path as `groups`"
    groups = "[{name: a, taps: legacy, t: 1}]\nselection: {url: selection.json}"
    assert problems(tmp_path, groups) == [f"spec.yaml:6:1: selection: {text}"]
    assert problems(tmp_path, "[{name: a, taps: legacy, t: 1}]", "selection=s.json") == [
        f"--set selection: {text}"
    ]
    assert read(tmp_path, "[{name: a, taps: legacy, t: 1}]\nselection: null").selection is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "and there is no such file"),
        ("version: 1", "which is no JSON: Expecting value: line 1 column 1 (char 0)"),
        ("[" * 100_000, "which is no JSON: maximum recursion depth exceeded"),
        (b"\xff", "which is no JSON: 'utf-8' codec can't decode byte 0xff"),
        ("[]", "which is no selection of this release (Input should be a valid dictionary or"),
        ('{"images": []}', "which is no selection of this release (gatehouse: Field required)"),
        ({"groups": []}, "which is no selection of this release (groups: List should have at least 1 item"),
        ({"groups": [{"name": "a", "t": 50}]}, "which is no selection of this release (groups.0.taps: Field"),
        (
            {"spec": {"backbone": {"sorce": "b"}}},
            "which is no selection of this release (sorce: Extra inputs",
        ),
    ],
)
def test_what_is_no_selection(tmp_path: Path, content: Any, message: str) -> None:
    """Named with its place, once, beside whatever else is wrong with the spec."""
    path = tmp_path / "selection.json"
    if isinstance(content, dict):
        content = json.dumps(selections.selection().model_dump(mode="json") | content)
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    (line,) = problems(tmp_path, str(path))
    assert line.startswith(f"spec.yaml:5:9: groups: found 'selection.json', {message}")
    assert line.endswith(CURE)
    (override, other) = sorted(problems(tmp_path, "[]", f"groups={path}", "seed=x"))
    assert override.startswith(f"--set groups: found 'selection.json', {message}")
    assert other.startswith("--set seed: found 'x'")


def test_a_selection_of_another_release(tmp_path: Path, url: str) -> None:
    document = json.loads(Path(url).read_text()) | {"schema_version": 2, "new": "field"}
    Path(url).write_text(json.dumps(document))
    assert problems(tmp_path, url) == [
        "spec.yaml:5:9: groups: found 'gate/selection.json', a selection of schema version 2; this release reads 1:"
        " use the release that wrote it, or run `gatehouse gate` again"
    ]


def test_a_folder_and_credentials(tmp_path: Path) -> None:
    (line,) = problems(tmp_path, str(tmp_path))
    assert "which cannot be read: " in line and line.endswith(CURE)
    (line,) = problems(tmp_path, "s3://key:secret@bucket/selection.json")
    assert line.startswith("spec.yaml:5:9: groups: holds credentials; give the URL without them")


def test_what_does_not_go_with_the_rest_of_the_spec(tmp_path: Path, url: str) -> None:
    """Groups that are good by themselves are checked beside the input, as those written by hand are."""
    (line,) = problems(tmp_path, url, "input.caption_field=null")
    assert "a group's prompt has {caption}, but input.caption_field is null" in line


def test_a_tap_that_the_backbone_has_not(tmp_path: Path) -> None:
    """It is found later than the rest, and has the place of the selection."""
    url = selections.write(tmp_path / "selection.json", selections.selection(group(taps=["upp"])))
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC.replace("PATH", url))
    with pytest.raises(
        SpecError, match=r"spec\.yaml:5:9: groups\.0\.taps\.0: 'upp' is no tap of this network"
    ):
        load(str(path), check=wrong_taps)


def test_other_specs_have_no_groups(tmp_path: Path) -> None:
    path = tmp_path / "captions.yaml"
    path.write_text("version: 1\ngroups: selection.json\n")
    with pytest.raises(SpecError, match="groups: unknown key"):
        load(str(path), model=CaptionSpec)
