"""Caption specs are as strict as the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from schemas.captions import CaptionSpec, file_name
from schemas.specfile import SpecError, dump, load

SPEC = """\
version: 1
captions: out
input: {shards: "*.tar"}
model: {source: ./blip}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "spec.yaml"
    file.write_text(SPEC)
    return file


def test_defaults_are_greedy_and_read_no_captions(path: Path) -> None:
    spec = load(str(path), model=CaptionSpec)
    assert (spec.num_beams, spec.prompt, spec.image_size, spec.model.batch_size) == (1, None, None, 8)
    assert spec.input.caption_field is None and spec.input.captions is None


def test_a_spec_survives_being_written(path: Path) -> None:
    spec = load(str(path), ["prompt=a photo of", "image_size=[224, 224]"], CaptionSpec)
    path.write_text(dump(spec))
    assert load(str(path), model=CaptionSpec) == spec


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("input.caption_field=txt", "input.caption_field"),
        ("input.captions=there", "input.captions"),
        ("model.dtype=int8", "model.dtype"),
        ("max_new_tokens=0", "max_new_tokens"),
        ("num_beams=0", "num_beams"),
        ("image_size=[0, 10]", "height and width must be positive"),
        ("modle=1", "modle: unknown key; allowed: model"),
        ("captions=s3://key:secret@bucket/x", "holds credentials"),
    ],
)
def test_wrong_values_are_named(path: Path, override: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        load(str(path), [override], CaptionSpec)


def test_files_are_named_by_the_shards_digest() -> None:
    """Ids are free text."""
    names = {file_name(shard) for shard in ("a.tar", "b.tar", "../ü/a.tar")}
    assert len(names) == 3
    assert all(name.startswith("shards/") and name.count("/") == 1 for name in names)
