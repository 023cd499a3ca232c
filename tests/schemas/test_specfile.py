"""Reading specs: every problem at once, each with its place; nothing unsafe; dump and load are inverse."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from pipeline.layouts import wrong_taps
from schemas.spec import ExtractSpec
from schemas.specfile import SpecError, dump, load
from schemas.techniques import Lora

GOOD = """\
version: 1
store: s
input:
  shards: "*.tar"
image_size: [64, 64]
groups:
  - name: plain
    taps: [legacy]
    t: 50
"""


def problems(tmp_path: Path, text: str, overrides: list[str] | None = None) -> list[str]:
    """The lines of the SpecError, with the file's folder taken off."""
    path = tmp_path / "spec.yaml"
    path.write_text(text)
    with pytest.raises(SpecError) as caught:
        load(str(path), overrides or [])
    return str(caught.value).replace(str(tmp_path) + "/", "").splitlines()


def good(tmp_path: Path, overrides: list[str], text: str = GOOD) -> ExtractSpec:
    path = tmp_path / "spec.yaml"
    path.write_text(text)
    return load(str(path), overrides)


def change(line: str, replacement: str) -> str:
    assert line in GOOD
    return GOOD.replace(line, replacement)


def test_a_good_file(tmp_path: Path) -> None:
    spec = good(tmp_path, [])
    assert spec.groups[0].taps == ["legacy"]


def test_a_file_on_any_file_system() -> None:
    with fsspec.open("memory://specs/a.yaml", "w") as file:
        file.write(GOOD)
    spec: ExtractSpec = load("memory://specs/a.yaml")
    assert spec.store == "s"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            change("shards:", "shard:"),
            "spec.yaml:4:3: input.shard: unknown key; allowed: shards, root, image_field, "
            "caption_field, captions, max_pixels, max_member_bytes",
        ),
        (change("store: s", "store: 5"), "spec.yaml:2:8: store: found 5 (an integer); allowed: a string"),
        (change("store: s", "store: no"), "spec.yaml:2:8: store: found false; allowed: a string"),
        (change("store: s\n", ""), "spec.yaml:1:1: store: missing; allowed: a string"),
        (
            change("    t: 50", "    t: fifty"),
            "spec.yaml:9:8: groups.0.t: found 'fifty' (a string); allowed: an integer or a list, each an integer"
            " or null",
        ),
        (
            change("image_size: [64, 64]", "image_size: [64]"),
            "spec.yaml:5:13: image_size: found a list of 1; allowed: a list of 2, each an integer",
        ),
        (
            change("[64, 64]", "[64, 100]"),
            "spec.yaml:5:13: image_size: is [64, 100]; height and width must be positive multiples of 8",
        ),
        (
            GOOD + "cluster: {device: cudda}\n",
            "spec.yaml:10:19: cluster.device: found 'cudda' (a string); allowed: cuda or auto or cpu",
        ),
        (
            change("    t: 50", "    t: [50, 5]"),
            "spec.yaml:9:8: groups.0.t: is [50, 5]; allowed is a number from 1 to 999, or a rising list of them",
        ),
        (
            change("    t: 50", "    prompt: a photo"),
            "spec.yaml:7:5: groups.0: needs exactly one of 't' (the paper's count) and 'timestep' (the network's)",
        ),
        (
            GOOD + "output: {maps: false, pooled: false}\n",
            "spec.yaml:1:1: output.maps and output.pooled are both false: nothing would be stored",
        ),
    ],
)
def test_a_problem_names_place_key_found_and_allowed(tmp_path: Path, text: str, message: str) -> None:
    assert message in problems(tmp_path, text)


@pytest.mark.parametrize(
    ("taps", "messages"),
    [
        (
            "5",
            [
                "spec.yaml:8:11: groups.0.taps: found 5 (an integer); allowed: a string or a list, "
                "each a string or a mapping with the keys name, dtype, stages, strides, tokens"
            ],
        ),
        (
            "[legacy, {name: 3}]",
            ["spec.yaml:8:27: groups.0.taps.1.name: found 3 (an integer); allowed: a string"],
        ),
        (
            "[legacy, {nam: x}]",
            [
                "spec.yaml:8:20: groups.0.taps.1.name: missing; allowed: a string",
                "spec.yaml:8:21: groups.0.taps.1.nam: unknown key; allowed: name, dtype, stages, strides, tokens",
            ],
        ),
        (
            "[legacy, 7]",
            [
                "spec.yaml:8:20: groups.0.taps.1: found 7 (an integer); allowed: a string or a mapping "
                "with the keys name, dtype, stages, strides, tokens"
            ],
        ),
        ("[]", ["spec.yaml:8:11: groups.0.taps: names no tap"]),
    ],
)
def test_unions_report_only_the_branch_that_was_meant(tmp_path: Path, taps: str, messages: list[str]) -> None:
    """Pydantic reports every branch: a wrong item of a list would also be called "not a string"."""
    assert problems(tmp_path, change("[legacy]", taps)) == messages


TYPES = "average or controlnet or denoise or guidance or inversion or ip-adapter or lora or no-noise"


@pytest.mark.parametrize(
    ("technique", "messages"),
    [
        (
            "{type: controlnt, source: x}",
            [
                "spec.yaml:10:25: groups.0.techniques.0.type: found 'controlnt' (a string); allowed: controlnet or "
                + TYPES.replace("controlnet or ", "")
            ],
        ),
        (
            "{type: 5}",
            [f"spec.yaml:10:25: groups.0.techniques.0.type: found 5 (an integer); allowed: {TYPES}"],
        ),
        ("{type: null}", [f"spec.yaml:10:25: groups.0.techniques.0.type: found null; allowed: {TYPES}"]),
        ("{source: x}", [f"spec.yaml:10:18: groups.0.techniques.0.type: missing; allowed: {TYPES}"]),
        (
            "lora",
            [
                "spec.yaml:10:18: groups.0.techniques.0: found 'lora' (a string); allowed: a mapping with type: "
                + TYPES
            ],
        ),
        (
            "{type: lora, scale: big}",
            [
                "spec.yaml:10:18: groups.0.techniques.0.source: missing; allowed: a string",
                "spec.yaml:10:38: groups.0.techniques.0.scale: found 'big' (a string); allowed: a number",
            ],
        ),
        (
            "{type: lora, source: x, sclae: 1}",
            ["spec.yaml:10:42: groups.0.techniques.0.sclae: unknown key; allowed: scale, type, source"],
        ),
        (
            "{type: lora, source: x, scale: .nan}",
            ["spec.yaml:10:49: groups.0.techniques.0.scale: is nan; allowed is a finite number"],
        ),
        (
            "{type: controlnet, source: x, low: -1}",
            ["spec.yaml:10:53: groups.0.techniques.0.low: found -1 (an integer); allowed: an integer >= 0"],
        ),
        (
            "{type: controlnet, source: x, low: 300}",
            [
                "spec.yaml:10:18: groups.0.techniques.0: has low 300 above high 200; canny's lower threshold comes"
                " first"
            ],
        ),
        (
            "{type: controlnet, source: x, image: depth}",
            [
                "spec.yaml:10:55: groups.0.techniques.0.image: is 'depth'; allowed are 'canny', 'field:EXT' and"
                " 'call:MODULE:FUNCTION'"
            ],
        ),
    ],
)
def test_techniques_report_what_their_type_allows(
    tmp_path: Path, technique: str, messages: list[str]
) -> None:
    text = GOOD + f"    techniques: [{technique}]\n"
    assert problems(tmp_path, text) == messages


def test_a_wrong_technique_by_override(tmp_path: Path) -> None:
    text = GOOD + "    techniques: [{type: lora, source: x}]\n"
    assert problems(tmp_path, text, ["groups.0.techniques.0.type=lorra"]) == [
        "--set groups.0.techniques.0.type: found 'lorra' (a string); allowed: lora or "
        + TYPES.replace("lora or ", "")
    ]
    changed = good(tmp_path, ["groups.0.techniques.0.scale=0.5"], text).groups[0].techniques[0]
    assert isinstance(changed, Lora) and changed.scale == 0.5


def test_every_problem_is_reported_in_the_files_order(tmp_path: Path) -> None:
    text = change("store: s", "store: 5").replace("name: plain", "name: Plain") + "sede: 1\nstore: s\n"
    found = problems(tmp_path, text, ["backbone.batch_size=0"])
    places = [line.split(": ")[0] for line in found]
    assert places == [
        "spec.yaml:7:11",
        "spec.yaml:10:1",
        "spec.yaml:11:1",
        "--set backbone.batch_size",
    ]
    assert found[1].startswith("spec.yaml:10:1: sede: unknown key; allowed: seed, version, ")


def test_a_key_given_twice_is_an_error(tmp_path: Path) -> None:
    """PyYAML silently keeps the last: half of a merged file would be ignored."""
    text = change("    t: 50\n", "    t: 50\n    t: 100\n") + "seed: 1\nseed: 1\n"
    assert problems(tmp_path, text) == [
        "spec.yaml:10:5: groups.0.t: given twice, first in line 9; keep one",
        "spec.yaml:12:1: seed: given twice, first in line 11; keep one",
    ]


def test_anchors_and_merge_keys_are_no_duplicates(tmp_path: Path) -> None:
    text = change("  - name: plain", "  - &first\n    name: plain") + "  - {<<: *first, name: second}\n"
    assert [group.t for group in good(tmp_path, [], text).groups] == [50, 50]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "spec.yaml: is empty; a spec is a YAML mapping"),
        ("# only a comment\n", "spec.yaml: is empty; a spec is a YAML mapping"),
        ("- 1\n", "spec.yaml:1:1: found a list of 1; allowed: a mapping with the keys version, store, "),
        ("a: [1\nb: 2\n", "spec.yaml:2:2: is not valid YAML: while parsing a flow sequence, "),
        ("a: 1\n---\nb: 1\n", "spec.yaml:2:1: is not valid YAML: expected a single document in the stream"),
        (
            "a: !!python/object/apply:os.getcwd []\n",
            "spec.yaml:1:4: is not valid YAML: could not determine a cons",
        ),
        ("[a]: 1\n", "spec.yaml:1:1: is not valid YAML: while constructing a mapping, found unhashable key"),
        ("a: 2024-13-45\n", "spec.yaml: is not valid YAML: month must be in 1..12"),
        ("a: \0\n", "spec.yaml: is not valid YAML: unacceptable character #x0000"),
        ("a: &a [*a]\n", "spec.yaml:1:1: a: unknown key"),
        ("[" * 5000, "spec.yaml: is not valid YAML: maximum recursion depth exceeded"),
    ],
)
def test_files_that_are_no_spec(tmp_path: Path, text: str, message: str) -> None:
    assert any(line.startswith(message) for line in problems(tmp_path, text))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"none\.yaml: there is no such file; give the path or URL of a spec"):
        load(str(tmp_path / "none.yaml"))
    (tmp_path / "latin.yaml").write_bytes(b"store: caf\xe9\n")
    with pytest.raises(SpecError, match=r"latin\.yaml: is no UTF-8 text \(byte 10\)"):
        load(str(tmp_path / "latin.yaml"))
    with pytest.raises(SpecError, match=r"cannot be read: .*[Dd]irectory"):
        load(str(tmp_path))
    with pytest.raises(SpecError, match=r"nope://a: cannot be read: Protocol not known: nope"):
        load("nope://a")


def test_another_version_is_the_only_problem(tmp_path: Path) -> None:
    """What a later version calls right must not be called wrong here."""
    text = change("version: 1", "version: 2") + "later: 1\nstore: twice\n"
    assert problems(tmp_path, text) == [
        "spec.yaml:1:10: version: found 2 (an integer); this release reads version 1"
    ]


def test_all_versions_that_are_read_are_named(tmp_path: Path) -> None:
    class Either(BaseModel):
        version: Literal[1, 2]

    (tmp_path / "a.yaml").write_text("version: 3\n")
    with pytest.raises(SpecError, match="this release reads version 1 or 2"):
        load(str(tmp_path / "a.yaml"), model=Either)


def test_overrides(tmp_path: Path) -> None:
    overrides = ["groups.0.prompt=a photo", "output.dtype=float32", "image_size=[32, 40]", "seed=1", "seed=2"]
    spec = good(tmp_path, [*overrides, "groups.0.t=null", "groups.0.timestep=51", "store=a=b"])
    assert spec.groups[0].prompt == "a photo"
    assert spec.output.dtype == "float32"
    assert spec.image_size == [32, 40]
    assert spec.seed == 2
    assert (spec.groups[0].t, spec.groups[0].timestep) == (None, 51)
    assert spec.store == "a=b"


def test_an_override_mends_the_file(tmp_path: Path) -> None:
    assert good(tmp_path, ["store=t"], change("store: s", "store: 5")).store == "t"


def test_an_override_leaves_aliases_alone(tmp_path: Path) -> None:
    """An alias gives two groups one and the same list: changing it in place would change both."""
    text = change("taps: [legacy]", "taps: &taps [legacy]") + "  - {name: other, taps: *taps, t: 50}\n"
    spec = good(tmp_path, ["groups.0.taps.0=practical"], text)
    assert [group.taps for group in spec.groups] == [["practical"], ["legacy"]]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "--set seed: found no KEY=VALUE; allowed: a dotted key, as in groups.0.seed=1"),
        ("=1", "--set =1: found no KEY=VALUE; allowed: a dotted key, as in groups.0.seed=1"),
        ("a..b=1", "--set a..b=1: found no KEY=VALUE; allowed: a dotted key, as in groups.0.seed=1"),
        (
            "seed=[1",
            "--set seed: found '[1', which is not valid YAML: expected ',' or ']', but got '<stream end>'",
        ),
        ("seed=one", "--set seed: found 'one' (a string); allowed: an integer"),
        ("groups.0.tap=x", "--set groups.0.tap: unknown key; allowed: taps, name, prompt, "),
        ("outputt.dtype=x", "--set outputt.dtype: outputt: unknown key; allowed: output, version, "),
        (
            "output.dtype=float23",
            "--set output.dtype: found 'float23' (a string); allowed: float32 or float16",
        ),
        (
            "output={dtype: 3}",
            "--set output: output.dtype: found 3 (an integer); allowed: float16 or float32",
        ),
        (
            "groups.1.t=1",
            "--set groups.1.t: groups: found a list of 1, which has no item '1'; allowed: 0 to 0",
        ),
        (
            "groups.x.t=1",
            "--set groups.x.t: groups: found a list of 1, which has no item 'x'; allowed: 0 to 0",
        ),
        (
            "groups.-1.t=1",
            "--set groups.-1.t: groups: found a list of 1, which has no item '-1'; allowed: 0 to 0",
        ),
        (
            "store.a=1",
            "--set store.a: store: found 's' (a string), which has no keys; allowed: --set store=VALUE",
        ),
    ],
)
def test_a_bad_override_names_itself(tmp_path: Path, override: str, message: str) -> None:
    (line,) = problems(tmp_path, GOOD, [override])
    assert line.startswith(message)


def test_the_demo_spec_is_good() -> None:
    spec: ExtractSpec = load(str(Path(__file__).parents[2] / "infra" / "demo.yaml"))
    assert [group.name for group in spec.groups] == ["plain", "caption"]


def tap_name(tap: str | dict[str, str]) -> str:
    return tap if isinstance(tap, str) else tap["name"]


TEXT = st.text(min_size=1, max_size=20)
NAMES = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,8}", fullmatch=True)
NAMED = st.fixed_dictionaries({"name": TEXT})
TAPS = st.one_of(TEXT, st.lists(TEXT | NAMED, min_size=1, max_size=3, unique_by=lambda tap: tap_name(tap)))
TIMES = st.lists(st.integers(1, 59), min_size=1, max_size=3, unique=True).map(sorted)
SCALES = st.floats(allow_nan=False, allow_infinity=False)
TECHNIQUES = st.lists(
    st.one_of(
        st.fixed_dictionaries({"type": st.just("lora"), "source": NAMES, "scale": SCALES}),
        st.fixed_dictionaries({"type": st.just("controlnet"), "source": NAMES}, optional={"scale": SCALES}),
        st.just({"type": "denoise", "start": 60}),
        st.fixed_dictionaries({"type": st.just("guidance"), "scale": SCALES, "negative_prompt": TEXT}),
    ),
    max_size=4,
    unique_by=lambda technique: str(technique["type"]),
)
PROMPTS = TEXT.filter(lambda text: "{" not in text)
GROUPS = st.fixed_dictionaries(
    {
        "name": NAMES,
        "taps": TAPS,
        "t": st.integers(1, 59) | TIMES,
        "prompt": PROMPTS,
        "seed": st.integers(),
        "flip": st.booleans(),
        "techniques": TECHNIQUES,
    }
)
SPECS = st.fixed_dictionaries(
    {
        "version": st.just(1),
        "store": TEXT,
        "input": st.fixed_dictionaries({"shards": TEXT | st.lists(TEXT, min_size=1, max_size=3)}),
        "image_size": st.lists(st.integers(1, 64).map(lambda n: 8 * n), min_size=2, max_size=2),
        "groups": st.lists(GROUPS, min_size=1, max_size=3, unique_by=lambda group: str(group["name"])),
        "fit": st.sampled_from(["stretch", "crop", "pad"]),
        "tiles": st.none() | st.just({"size": [8, 8], "overlap": 0}),
        "max_bad_fraction": st.floats(0, 1),
        "cluster": st.fixed_dictionaries({"stall_timeout_s": st.floats(0, exclude_min=True)}),
    }
)


@settings(max_examples=100, deadline=None)
@given(SPECS)
def test_dump_and_load_are_inverse(data: dict[str, Any]) -> None:
    """Strings that YAML reads as something else (`no`, `1e3`, U+0085 as a line break) and odd floats must survive."""
    spec = ExtractSpec.model_validate(data)
    text = dump(spec)
    with fsspec.open("memory://round-trip.yaml", "wb") as file:
        file.write(text.encode())
    assert load("memory://round-trip.yaml") == spec


def test_a_check_that_the_model_cannot_make_is_placed_like_any_other(tmp_path: Path) -> None:
    """A wrong tap is found by the backbone's config, yet named by line and column, or by its override."""
    file = tmp_path / "spec.yaml"
    file.write_text(
        "version: 1\nstore: s\ninput: {shards: a.tar}\nimage_size: [64, 64]\n"
        "groups:\n  - {name: one, t: 50, taps: legacyy}\n  - {name: two, t: 50, taps: [legacy, up]}\n"
    )
    with pytest.raises(SpecError) as caught:
        load(str(file), check=wrong_taps)
    first, second = str(caught.value).splitlines()
    assert first.startswith(
        f"{file}:6:30: groups.0.taps: 'legacyy' is no tap of this network; nearest: legacy;"
    )
    assert second.startswith(f"{file}:7:39: groups.1.taps.1: 'up' is no tap of this network")
    with pytest.raises(
        SpecError, match=r"^--set groups\.0\.taps: 'practicall' is no tap.*nearest: practical"
    ):
        load(str(file), ["groups.0.taps=practicall", "groups.1.taps=legacy"], check=wrong_taps)
