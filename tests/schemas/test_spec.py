"""The spec's own rules: strictness, and what its validators refuse."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from schemas.spec import ExtractSpec

GROUP = {"name": "plain", "taps": "legacy", "t": 50}


def spec(**changes: Any) -> ExtractSpec:
    minimal = {
        "version": 1,
        "store": "s",
        "input": {"shards": "*.tar"},
        "image_size": [64, 96],
        "groups": [GROUP],
    }
    return ExtractSpec.model_validate({**minimal, **changes})


def test_the_smallest_spec_is_enough() -> None:
    """Every field but five has a default; a new required field would break all specs that users have."""
    checked = spec()
    assert checked.backbone.source == "embedded"
    assert checked.output.dtype == "float16"
    assert checked.input.image_fields == ["jpg", "jpeg", "png", "webp"]


def test_one_image_field_is_a_preference_list_of_one() -> None:
    assert spec(input={"shards": "a", "image_field": "seg.png"}).input.image_fields == ["seg.png"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": "1"}, "valid integer"),
        ({"seed": True}, "valid integer"),
        ({"max_bad_fraction": "0.5"}, "valid number"),
        ({"sede": 1}, "Extra inputs"),
        ({"output": {"maps": 1}}, "valid boolean"),
    ],
)
def test_nothing_is_converted_or_ignored(changes: dict[str, Any], message: str) -> None:
    """Pydantic's default turns "1" into 1 and drops unknown keys: a typo would silently become a default."""
    with pytest.raises(ValidationError, match=message):
        spec(**changes)


@pytest.mark.parametrize("size", [[64], [64, 64, 3], [64, 100], [0, 64], [-8, 64]])
def test_image_size_is_two_multiples_of_8(size: list[int]) -> None:
    with pytest.raises(ValidationError, match="image_size"):
        spec(image_size=size)


def test_two_groups_of_one_name_are_refused() -> None:
    """They would write to the same array."""
    with pytest.raises(ValidationError, match="two groups are named 'plain'"):
        spec(groups=[GROUP, {**GROUP, "t": 100}])


@pytest.mark.parametrize("name", ["", "A", "a/b", "../a", ".a", "a" * 65])
def test_a_group_name_is_safe_as_a_folder(name: str) -> None:
    with pytest.raises(ValidationError, match="pattern"):
        spec(groups=[{**GROUP, "name": name}])


@pytest.mark.parametrize("times", [{}, {"t": 50, "timestep": 51}])
def test_a_group_has_one_time(times: dict[str, int]) -> None:
    group = {"name": "plain", "taps": "legacy", **times}
    with pytest.raises(ValidationError, match="exactly one of 't'"):
        spec(groups=[group])


def test_timestep_zero_counts_as_given() -> None:
    """0 is falsy: a truth test in place of `is None` would call it missing."""
    assert spec(groups=[{"name": "plain", "taps": "legacy", "timestep": 0}]).groups[0].timestep == 0


def test_unknown_placeholders_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"placeholder \{class\}; allowed is \{caption\}"):
        spec(groups=[{**GROUP, "prompt": "a {class}"}])


def test_a_caption_prompt_needs_captions() -> None:
    group = {**GROUP, "prompt": "{caption}"}
    assert spec(groups=[group]).groups[0].uses_caption
    with pytest.raises(ValidationError, match=r"caption_field is null"):
        spec(groups=[group], input={"shards": "a", "caption_field": None})


def test_storing_nothing_is_refused() -> None:
    with pytest.raises(ValidationError, match="nothing would be stored"):
        spec(output={"maps": False, "pooled": False})


@pytest.mark.parametrize("field", ["text", "json:", "json"])
def test_caption_fields(field: str) -> None:
    with pytest.raises(ValidationError, match="allowed are 'txt', 'json:FIELD' and null"):
        spec(input={"shards": "a", "caption_field": field})


@pytest.mark.parametrize("key", ["shards", "image_field"])
@pytest.mark.parametrize("value", ["", [], ["a", ""]])
def test_patterns_are_not_empty(key: str, value: Any) -> None:
    with pytest.raises(ValidationError, match="at least one"):
        spec(input={"shards": "a", key: value})


def test_techniques_are_refused_until_there_are_some() -> None:
    """A store must not claim a technique that was not applied."""
    with pytest.raises(ValidationError, match="techniques"):
        spec(groups=[{**GROUP, "techniques": [{"controlnet": "x"}]}])


@pytest.mark.parametrize("key", ["store", "input", "backbone"])
def test_credentials_in_urls_are_refused(key: str) -> None:
    """The spec is kept in the manifest and shown by Ray: a secret in it would be everyone's."""
    url = "s3://KEY:SECRET@bucket/folder"
    changes = {"store": url, "input": {"shards": [url]}, "backbone": {"source": url}}
    with pytest.raises(ValidationError, match="holds credentials; give the URL without them"):
        spec(**{key: changes[key]})
