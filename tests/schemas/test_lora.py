"""LoRA specs are as strict as the others; their defaults are the paper's."""

from __future__ import annotations

from pathlib import Path

import pytest

from schemas.lora import LoraSpec
from schemas.specfile import SpecError, dump, load

SPEC = """\
version: 1
lora: out
input: {shards: "*.tar"}
image_size: [512, 512]
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "spec.yaml"
    file.write_text(SPEC)
    return file


def test_defaults_are_the_papers(path: Path) -> None:
    spec = load(str(path), model=LoraSpec)
    assert (spec.images, spec.layers, spec.prompt) == (30, "locon", "{caption}")
    assert spec.rank is None and spec.alpha is None  # the backbone's width decides
    assert spec.work_folder == "out-work"


def test_a_spec_survives_being_written(path: Path) -> None:
    spec = load(str(path), ["rank=8", "alpha=4.0", "samples=null", "prompt=a {json:name}"], LoraSpec)
    path.write_text(dump(spec))
    assert load(str(path), model=LoraSpec) == spec
    assert spec.json_fields == ["name"]


@pytest.mark.parametrize(
    ("steps", "share", "expected"), [(1500, 0.5, 750), (2, 0.01, 1), (2, 0.99, 1), (10, 0.25, 2)]
)
def test_the_moderate_file_is_never_the_last(path: Path, steps: int, share: float, expected: int) -> None:
    overrides = [f"steps={steps}", f"moderate_at={share}"]
    assert load(str(path), overrides, LoraSpec).moderate_step == expected


def test_checkpoints_need_a_folder_of_their_own(path: Path) -> None:
    with pytest.raises(
        SpecError, match=r"work and lora are both './l'; give checkpoints a folder of their own"
    ):
        load(str(path), ["lora=./l", "work=l/"], LoraSpec)


def test_a_url_needs_a_work_folder(path: Path) -> None:
    with pytest.raises(
        SpecError, match=r"'s3://b/x', and checkpoints need a local folder: give one as `work`"
    ):
        load(str(path), ["lora=s3://b/x"], LoraSpec)
    assert load(str(path), ["lora=s3://b/x", "work=here"], LoraSpec).work_folder == "here"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rank=0", r"rank: found 0"),
        ("alpha=0", "alpha"),
        ("alpha=.inf", "allowed is a finite number above 0"),
        ("learning_rate=0", "learning_rate"),
        ("learning_rate=.inf", "allowed is a finite number above 0"),
        ("images=0", "images"),
        ("steps=1", "steps"),
        ("moderate_at=1", "moderate_at"),
        ("image_size=[100, 100]", "positive multiples of 8"),
        ("prompt='{name}'", r"has the placeholder \{name\}; allowed are \{caption\} and \{json:FIELD\}"),
        ("layers=attention", "allowed: locon or linear"),
        ("fit=pad", "allowed: stretch or crop"),
        ("backbone.dtype=float16", "allowed: bfloat16 or float32"),
        ("work=s3://b/work", "allowed is a local folder"),
        ("input.caption_field=null", r"prompt has \{caption\}, but input\.caption_field is null"),
        ("rnak=4", "rnak: unknown key; allowed: rank"),
        ("lora=s3://key:secret@bucket/x", "holds credentials"),
    ],
)
def test_wrong_values_are_named(path: Path, override: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        load(str(path), [override], LoraSpec)


def test_a_fixed_prompt_needs_no_captions(path: Path) -> None:
    spec = load(str(path), ["prompt=a horse", "input.caption_field=null"], LoraSpec)
    assert spec.placeholders == []
