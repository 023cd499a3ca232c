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


@pytest.mark.parametrize("key", ["t", "timestep"])
@pytest.mark.parametrize("times", [[], [100, 50], [50, 50], [50, 1000], 1000, -1, [-1, 3]])
def test_times_are_a_rising_list_in_range(key: str, times: Any) -> None:
    group = {"name": "plain", "taps": "legacy", key: times}
    with pytest.raises(
        ValidationError, match=r"allowed is a number from [01] to 999, or a rising list of them"
    ):
        spec(groups=[group])


def test_a_list_of_times_makes_a_group_of_each() -> None:
    listed = {**GROUP, "t": [50, 200], "prompt": "a", "seed": 3}
    by_timestep = {"name": "other", "taps": "legacy", "timestep": [0]}
    checked = spec(groups=[listed, by_timestep, {**GROUP, "name": "single"}])
    found = [(one.name, one.t, one.timestep) for one in checked.expanded_groups]
    assert found == [
        ("plain-t50", 50, None),
        ("plain-t200", 200, None),
        ("other-t0", None, 0),
        ("single", 50, None),
    ]
    first = checked.expanded_groups[0]
    assert (first.taps, first.prompt, first.seed) == ("legacy", "a", 3)
    assert [group.name for group in checked.groups] == ["plain", "other", "single"], "the spec stays as it is"


def test_names_that_times_make_are_names() -> None:
    with pytest.raises(ValidationError, match="two groups are named 'plain-t50'"):
        spec(groups=[{**GROUP, "t": [50]}, {**GROUP, "name": "plain-t50"}])
    with pytest.raises(ValidationError, match=r"makes the name 'a{61}-t50': at most 64 characters"):
        spec(groups=[{**GROUP, "name": "a" * 61, "t": [50, 60]}])


def test_only_attn_has_parameters() -> None:
    attn = {"name": "attn", "stages": ["up", "mid"], "strides": [8, 32], "tokens": [0, 3]}
    assert spec(groups=[{**GROUP, "taps": [attn]}]).groups[0].asked("attn").tokens == [0, 3]
    with pytest.raises(ValidationError, match="has 'strides', which only the tap 'attn' takes"):
        spec(groups=[{**GROUP, "taps": [{"name": "unet-in", "strides": [8, 32]}]}])


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        ({"strides": [32, 8]}, r"has strides \[32, 8\]; the finest comes first"),
        ({"strides": [0, 8]}, "greater than or equal to 1"),
        ({"tokens": []}, "at least 1 item"),
        ({"stages": []}, "at least 1 item"),
        ({"stages": ["middle"]}, "'down', 'mid' or 'up'"),
    ],
)
def test_parameters_of_attn(parameter: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        spec(groups=[{**GROUP, "taps": [{"name": "attn", **parameter}]}])


def test_a_tap_is_named_once() -> None:
    """Of two with other parameters, one would silently be ignored: arrays go by the tap's name."""
    with pytest.raises(ValidationError, match="names 'attn' twice; give each tap once"):
        spec(groups=[{**GROUP, "taps": ["attn", {"name": "attn", "tokens": [1]}]}])


@pytest.mark.parametrize("name", ["class", "json", "json:", ""])
def test_unknown_placeholders_are_refused(name: str) -> None:
    with pytest.raises(ValidationError, match=r"allowed are \{caption\} and \{json:FIELD\}"):
        spec(groups=[{**GROUP, "prompt": f"a {{{name}}}"}])


def test_what_prompts_take_from_samples() -> None:
    checked = spec(
        groups=[
            {**GROUP, "prompt": "{json:b}: {caption}, {json:a} {caption}"},
            {**GROUP, "name": "b", "prompt": "{json:b}"},
            {**GROUP, "name": "c", "prompt": "fixed"},
        ]
    )
    assert checked.groups[0].placeholders == ["json:b", "caption", "json:a"]
    assert [group.varies for group in checked.groups] == [True, True, False]
    assert checked.json_fields == ["b", "a"]


def test_a_caption_prompt_needs_captions() -> None:
    group = {**GROUP, "prompt": "{caption}"}
    none = {"shards": "a", "caption_field": None}
    with pytest.raises(ValidationError, match=r"input\.caption_field is null and input\.captions not given"):
        spec(groups=[group], input=none)
    assert spec(groups=[group], input={**none, "captions": "folder"}).input.captions == "folder"
    assert spec(groups=[{**GROUP, "prompt": "{json:a}"}], input=none).json_fields == ["a"]


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


LORA = {"type": "lora", "source": "a.safetensors"}
CONTROL = {"type": "controlnet", "source": "c"}


def with_techniques(*techniques: dict[str, Any], **changes: Any) -> ExtractSpec:
    return spec(groups=[{**GROUP, "techniques": list(techniques)}], **changes)


def test_techniques_combine() -> None:
    """All of them but those that set what the network starts from."""
    found = with_techniques(
        CONTROL,
        {**CONTROL, "image": "field:depth.png", "scale": 1},
        LORA,
        {**LORA, "scale": -0.5},
        {"type": "guidance", "scale": 7.5},
        {"type": "ip-adapter", "source": "i", "image_encoder": "e"},
        {"type": "denoise", "start": 60},
        {"type": "average", "seeds": 2},
    )
    assert [one.type for one in found.groups[0].techniques][:3] == ["controlnet", "controlnet", "lora"]


@pytest.mark.parametrize(
    ("techniques", "message"),
    [
        (
            [{"type": "guidance", "scale": 2.0}] * 2,
            "'guidance' is there twice; only 'controlnet' and 'lora' may",
        ),
        (
            [{"type": "no-noise"}, {"type": "inversion"}],
            "'no-noise' and 'inversion' each set what the network starts from; give one",
        ),
        (
            [{"type": "inversion"}, {"type": "average", "seeds": 2}],
            "'average' is over draws of noise, and 'inversion' draws none",
        ),
        (
            [{"type": "denoise", "start": 50}],
            "'denoise' starts at 50 of a group's 't', which must be given and lower",
        ),
        (
            [{**CONTROL, "image": "cany"}],
            "is 'cany'; allowed are 'canny', 'field:EXT' and 'call:MODULE:FUNCTION'",
        ),
        ([{**CONTROL, "image": "call:os"}], "is 'call:os'; allowed are"),
        ([{**CONTROL, "low": 201}], "has low 201 above high 200; canny's lower threshold comes first"),
        ([{**LORA, "scale": float("nan")}], "is nan; allowed is a finite number"),
        ([{**LORA, "scale": "1"}], "valid number"),
        ([{**LORA, "scael": 1.0}], "Extra inputs"),
        ([{"type": "average", "seeds": 1}], "greater than or equal to 2"),
        ([{"controlnet": "x"}], "Unable to extract tag"),
        ([{"type": "controlnt"}], "does not match any of the expected tags"),
    ],
)
def test_techniques_that_are_refused(techniques: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        with_techniques(*techniques)


def test_denoise_counts_from_the_strongest_of_a_groups_times() -> None:
    denoise = [{"type": "denoise", "start": 60}]
    assert spec(groups=[{**GROUP, "t": [40, 59], "techniques": denoise}])
    for times in ({"t": [40, 60]}, {"timestep": 40}):
        with pytest.raises(ValidationError, match="'denoise' starts at 60"):
            spec(groups=[{"name": "a", "taps": "legacy", "techniques": denoise, **times}])


def test_control_images_of_samples() -> None:
    depth = {**CONTROL, "image": "field:Depth.PNG"}
    found = with_techniques(CONTROL, depth, {**CONTROL, "image": "call:some.where:edges"}, depth)
    assert found.control_fields == ["depth.png"]
    with pytest.raises(
        ValidationError, match=r"takes 'png' as its control image, which input\.image_field lists"
    ):
        with_techniques({**CONTROL, "image": "field:png"})
    one = {"shards": "a", "image_field": "jpg"}
    assert with_techniques({**CONTROL, "image": "field:png"}, input=one).control_fields == ["png"]


@pytest.mark.parametrize(
    "tiles",
    [
        {"size": [64, 104]},
        {"size": [128, 96]},
        {"size": [0, 64]},
        {"size": [60, 64]},
        {"size": [64, 64], "overlap": 64},
    ],
)
def test_tiles_fit_into_the_image(tiles: dict[str, Any]) -> None:
    with pytest.raises(
        ValidationError, match=r"sides must be multiples of 8, larger than the overlap and no larger"
    ):
        spec(tiles=tiles)
    assert spec(tiles={"size": [64, 72], "overlap": 8}).tiles is not None


def test_techniques_in_the_json_schema() -> None:
    """Editors complete a technique's keys by its type."""
    definitions = ExtractSpec.model_json_schema()["$defs"]
    items = definitions["Group"]["properties"]["techniques"]["items"]
    assert items["discriminator"]["propertyName"] == "type"
    assert items["discriminator"]["mapping"].keys() == {
        definitions[one["$ref"].rpartition("/")[2]]["properties"]["type"]["const"] for one in items["oneOf"]
    }


@pytest.mark.parametrize("key", ["store", "input", "captions", "backbone", "groups"])
def test_credentials_in_urls_are_refused(key: str) -> None:
    """The spec is kept in the manifest and shown by Ray: a secret in it would be everyone's."""
    url = "s3://KEY:SECRET@bucket/folder"
    changes: dict[str, dict[str, Any]] = {
        "store": {"store": url},
        "input": {"input": {"shards": [url]}},
        "captions": {"input": {"shards": "a", "captions": url}},
        "backbone": {"backbone": {"source": url}},
        "groups": {"groups": [{**GROUP, "techniques": [{**LORA, "source": url}]}]},
    }
    with pytest.raises(ValidationError, match="holds credentials; give the URL without them"):
        spec(**changes[key])


def test_a_negative_prompt_is_no_template() -> None:
    """It was taken for the text of every other group with the same template."""
    guidance = {"type": "guidance", "scale": 2.0, "negative_prompt": "not {caption}"}
    with pytest.raises(ValidationError, match="one text for all samples, without placeholders"):
        spec(groups=[GROUP | {"techniques": [guidance]}])
