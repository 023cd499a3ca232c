"""What makes two jobs the same: every field of a spec is sorted into one of two kinds, so that a new one must be."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from pipeline import embedded, sources
from pipeline.identity import (
    IdentityError,
    backbone_fingerprint,
    check_same,
    check_selection,
    check_weights,
    identity,
)
from schemas.groups import Group, Tap
from schemas.receipts import ArrayLayout, Manifest
from schemas.spec import ExtractSpec
from tests.engines import copy_backbone, group, make_spec

EMBEDDED = Path(embedded.BACKBONE)

CHANGES: dict[str, Any] = {
    "image_size": [64, 72],
    "seed": 1,
    "input.image_field": "png",
    "input.caption_field": "json:words",
    "backbone.dtype": "bfloat16",
    "backbone.batch_size": 5,
    "groups.name": "other",
    "groups.taps": [TAP := "up-level1-upsampler-out"],
    "groups.taps.dtype": [{"name": "mid-vit-out", "dtype": "float32"}],
    "groups.prompt": "a cat",
    "groups.t": 51,
    "groups.seed": 1,
    "groups.text_windows": 2,
    "groups.latents": "mean",
    "groups.flip": True,
    "groups.techniques": [{"type": "guidance", "scale": 3.0}],
    "groups.taps.stages": [{"name": "attn", "stages": ["up", "mid"]}],
    "groups.taps.strides": [{"name": "attn", "strides": [16, 16]}],
    "groups.taps.tokens": [{"name": "attn", "tokens": [1, 2]}],
    "fit": "pad",
    "tiles": {"size": [32, 32], "overlap": 8},
    "output.dtype": "float32",
    "output.maps": False,
    "output.pooled": False,
    "output.compression_level": 0,
    "output.scores": {"prompt": "a photo", "anchor_t": 200},
}
"""Another value for each field that changes what is stored."""

SAME: dict[str, Any] = {
    "store": "elsewhere",
    "selection": {
        "url": "selection.json",
        "sha256": "0",
        "backbone": "0",
        "backbone_source": "embedded",
        "reading": "own",
        "confidence": 0.95,
        "judged": [{"name": "a", "verdict": "harms", "gain": -1.0, "low": -2.0, "high": -0.5}],
    },
    "input.shards": "other/*.tar",
    "input.root": "other",
    "input.max_pixels": 1,
    "input.max_member_bytes": 1,
    "output.block_bytes": 1,
    "max_bad_fraction": 0.5,
    "cluster.address": "ray://head",
    "cluster.device": "cuda",
    "cluster.actors": 7,
    "cluster.cpus_per_actor": 3,
    "cluster.max_requests": 3,
    "cluster.max_actor_bytes": 2**40,
    "cluster.lease_ttl_s": 5.0,
    "cluster.stall_timeout_s": 1.0,
    "cluster.stop_grace_s": 1.0,
}
"""Another value for each field that does not."""

BY_CONTENT = {"backbone.source", "backbone.revision", "backbone.config", "input.captions"}
"""Fields that count by the files they lead to."""

FIXED = {"version", "groups.timestep", "groups.taps.name", "groups.per_image_attention"}
"""Fields of which there is one value, or another way to say the same."""


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted names of a model's fields, those of the models inside in place of their own."""
    inner: dict[str, type[BaseModel]] = {"groups": Group}
    for name, field in model.model_fields.items():
        kind = inner.get(name, field.annotation)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from fields(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
        if f"{prefix}{name}" == "groups.taps":
            yield from fields(Tap, "groups.taps.")


def changed(field: str, value: Any) -> ExtractSpec:
    document = make_spec(group(taps=["mid-vit-out"])).model_dump(mode="json")
    target = document["groups"][0] if field.startswith("groups.") else document
    if field.startswith("groups.taps."):
        field = "groups.taps"
    *outer, last = field.removeprefix("groups.").split(".")
    for key in outer:
        target = target[key]
    assert target[last] != value
    target[last] = value
    return ExtractSpec.model_validate(document)


def identity_of(spec: ExtractSpec) -> dict[str, Any]:
    """As the planner makes it, but with shapes that need no network; as it is read from a manifest."""
    folder = sources.locate(spec.backbone)
    arrays = [
        ArrayLayout(group=one.name, tap=name, shape=[1, 1, 1], dtype=dtype or spec.output.dtype)
        for one in spec.groups
        for name, dtype in (
            (tap, None) if isinstance(tap, str) else (tap.name, tap.dtype) for tap in one.taps
        )
    ]
    return json.loads(json.dumps(identity(spec, folder, arrays)))


def manifest(identity: dict[str, Any]) -> Manifest:
    return Manifest(
        gatehouse="0",
        identity=identity,
        arrays=[],
        rows_per_block=1,
        rows_per_extent=1,
        spec={},
        libraries={},
    )


@pytest.fixture(scope="module")
def original() -> dict[str, Any]:
    return identity_of(make_spec(group(taps=["mid-vit-out"])))


def test_every_field_is_sorted() -> None:
    """A field that is new in the spec must be decided upon: here, and in `pipeline.identity` if it matters."""
    assert set(fields(ExtractSpec)) == {*CHANGES, *SAME, *BY_CONTENT, *FIXED}


@pytest.mark.parametrize("field", CHANGES)
def test_what_changes_the_identity(field: str, original: dict[str, Any]) -> None:
    other = identity_of(changed(field, CHANGES[field]))
    with pytest.raises(IdentityError, match="store there holds other features"):
        check_same("there", manifest(original), other)
    assert manifest(original).fingerprint != manifest(other).fingerprint


@pytest.mark.parametrize("field", SAME)
def test_what_does_not(field: str, original: dict[str, Any]) -> None:
    check_same("there", manifest(original), identity_of(changed(field, SAME[field])))


def test_two_ways_to_say_the_same(original: dict[str, Any]) -> None:
    """`t: 50` is timestep 51 of the embedded scheduler; a tap's dtype may be the default's."""
    tap = {"name": "mid-vit-out", "dtype": "float16"}
    said = make_spec(group(timestep=51, taps=[tap]))
    check_same("there", manifest(original), identity_of(said))


def test_the_same_files_elsewhere(tmp_path: Path, original: dict[str, Any]) -> None:
    folder = copy_backbone(tmp_path / "copy")
    copied = make_spec(group(taps=["mid-vit-out"]), backbone={"source": str(folder), "batch_size": 4})
    check_same("there", manifest(original), identity_of(copied))
    check_weights(copied, manifest(original))
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("0.012", "0.013"))
    with pytest.raises(
        IdentityError, match=r"backbone\.files\.scheduler/scheduler_config\.json: the store has '"
    ):
        check_same("there", manifest(original), identity_of(copied))
    with pytest.raises(IdentityError, match="copy': the files found on this machine are not those"):
        check_weights(copied, manifest(original))


def test_scores_that_are_not_asked_for_leave_no_trace(original: dict[str, Any]) -> None:
    """Or stores from before there were scores would be refused."""
    assert "scores" not in original["output"]
    scored = manifest(identity_of(changed("output.scores", CHANGES["output.scores"])))
    assert scored.scored and not manifest(original).scored


def test_a_selection_for_another_backbone(tmp_path: Path) -> None:
    """Both are named, by source and by files, since one source may have had other files before."""
    folder = copy_backbone(tmp_path / "other", beta_end=0.013)
    here, there = (backbone_fingerprint(path) for path in (EMBEDDED, folder))
    assert here != there and backbone_fingerprint(copy_backbone(tmp_path / "same")) == here
    made_for = SAME["selection"] | {"backbone": here}
    check_selection(make_spec(selection=made_for), EMBEDDED)
    check_selection(make_spec(), folder)
    message = (
        f"groups: selection.json was selected for the backbone 'embedded' with files {here[:12]}, and backbone.source"
        f" is '{folder}' with files {there[:12]}; give the backbone that it was made for, run `gatehouse gate`"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        check_selection(make_spec(selection=made_for, backbone={"source": str(folder)}), folder)


def test_all_differences_are_listed(original: dict[str, Any]) -> None:
    spec = make_spec(group(prompt="a cat", taps=["mid-vit-out", TAP], t=100), backbone={"batch_size": 8})
    with pytest.raises(IdentityError) as caught:
        check_same("s3://there", manifest(original), identity_of(spec))
    assert str(caught.value).splitlines() == [
        "store s3://there holds other features than this spec describes:",
        "  backbone.batch_size: the store has 4, the spec 8",
        "  groups.0.prompt: the store has 'a photo', the spec 'a cat'",
        "  groups.0.timestep: the store has 51, the spec 101",
        f"  groups.0.taps.{TAP}: the store has None, the spec 'float16'",
        "Give the spec another store, or put these values back.",
    ]


def test_another_number_of_groups(original: dict[str, Any]) -> None:
    spec = make_spec(group(taps=["mid-vit-out"]), group("more", taps=[TAP]))
    with pytest.raises(
        IdentityError, match=r"  groups: the store has \[\{'name': 'plain'.*the spec \[.*'more'"
    ):
        check_same("there", manifest(original), identity_of(spec))
