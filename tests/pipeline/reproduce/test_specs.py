"""From experiments to specs of jobs."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import embedded, presets
from pipeline.gate import candidates
from pipeline.layouts import layouts
from pipeline.reproduce import specs
from pipeline.reproduce.cost import cost
from pipeline.reproduce.experiments import EXPERIMENTS
from pipeline.reproduce.options import Options
from schemas.dataset import PublicName
from schemas.lora import MODERATE, OVERFITTED
from schemas.model import Model
from schemas.specfile import dump, load
from schemas.techniques import ControlNet, Lora
from tests import full_size

WORK = "/work-folder"
SMALL = {"backbone": "embedded", "controlnet": "embedded/controlnet-canny", "dtype": "float32"}
names = pytest.mark.parametrize("name", EXPERIMENTS)


def all_specs(options: Options) -> dict[str, Model]:
    """By name, as a run makes them."""
    about = (EXPERIMENTS[options.name], options, WORK)
    extracted = specs.extract_spec(*about)
    heads = specs.head_specs(*about, extracted)
    return {
        "lora": specs.lora_spec(*about),
        "gate": specs.gate_spec(*about),
        "extract": extracted,
        **{f"head-{name}": spec for name, spec in heads.items()},
    }


@names
@pytest.mark.parametrize("quick", [False, True])
def test_specs_are_read_as_they_are_made(name: PublicName, quick: bool, tmp_path: Path) -> None:
    """Otherwise every spec would be taken for one that the user has changed; nothing is left to be filled in."""
    for file, spec in all_specs(Options(name=name, quick=quick)).items():
        path = tmp_path / f"{file}.yaml"
        path.write_text(dump(spec))
        assert load(str(path), model=type(spec)) == spec
        assert "./" not in path.read_text()


@names
def test_the_papers_groups_and_one_plain_one(name: PublicName) -> None:
    experiment = EXPERIMENTS[name]
    options = Options(name=name)
    paper, made = presets.read(experiment.preset).spec, specs.extract_spec(experiment, options, WORK)
    kept = [group.name for group in paper.groups if group.name not in experiment.left_out]
    assert [group.name for group in made.groups] == [*kept, "baseline"]
    assert (made.image_size, made.tiles, made.backbone) == (paper.image_size, paper.tiles, paper.backbone)
    plain = made.groups[-1]
    assert (plain.techniques, plain.prompt, plain.t, plain.seed) == ([], experiment.prompt, 50, 0)


@names
def test_heads_read_all_that_is_stored(name: PublicName) -> None:
    """The baseline's from its group, GATE's from all others: convolutional features amalgamated, attention beside."""
    options = Options(name=name, image_size=[64, 64], backbone="embedded")
    made = specs.extract_spec(EXPERIMENTS[name], options, WORK)
    stored = {f"{array.group}/{array.tap}" for array in layouts(made, Path(embedded.BACKBONE))}
    for head, spec in specs.head_specs(EXPERIMENTS[name], options, WORK, made).items():
        groups = spec.features.groups or []
        read = {one for one in stored if one.partition("/")[0] in groups and not one.endswith("/attn")}
        mine = {one for one in stored if one.startswith("baseline/") == head.startswith("baseline")}
        assert read | set(spec.features.attention) == mine
        assert all(any(one.startswith(f"{group}/") for one in read) for group in groups)
    assert {array.tap for array in layouts(made, Path(embedded.BACKBONE)) if array.group == "baseline"} == {
        one.partition("/")[2] for one in stored if not one.endswith("/attn")
    }


def test_bedrooms_have_prompts_of_their_own() -> None:
    made = specs.extract_spec(EXPERIMENTS["bedroom28"], Options(name="bedroom28"), WORK)
    prompts = {group.name: group.prompt for group in made.groups}
    assert prompts.pop("prompt") == "a photo of a tidy and well-designed bedroom"
    assert set(prompts.values()) == {"a bedroom"} and "lora-b" not in prompts


def test_files_of_the_loras_that_were_trained() -> None:
    made = specs.extract_spec(EXPERIMENTS["ade20k"], Options(name="ade20k"), WORK)
    sources = [one.source for group in made.groups for one in group.techniques if isinstance(one, Lora)]
    folder = specs.lora_spec(EXPERIMENTS["ade20k"], Options(name="ade20k"), WORK).lora
    assert sources == [f"{folder}/{name}.safetensors" for name in (MODERATE, OVERFITTED)]


def test_a_backbone_of_the_users_own() -> None:
    """Everywhere: a LoRA for another network would be refused only after it was trained."""
    commit = "1" * 40
    options = Options(
        name="spair71k", backbone="me/net", revision=commit, controlnet="me/edges", controlnet_revision=commit
    )
    about = (EXPERIMENTS["spair71k"], options, WORK)
    lora, gate, made = specs.lora_spec(*about), specs.gate_spec(*about), specs.extract_spec(*about)
    for backbone in (lora.backbone, gate.backbone, made.backbone):
        assert (backbone.source, backbone.revision) == ("me/net", commit)
    steering = [one for group in [*made.groups, *(gate.candidates or ())] for one in group.techniques]
    edges = {(one.source, one.revision) for one in steering if isinstance(one, ControlNet)}
    assert edges == {("me/edges", commit)}


def test_large_pictures() -> None:
    """LoRAs learn tiles at the scale at which features are extracted; tiles follow the image size."""
    about = (EXPERIMENTS["cityscapes"], Options(name="cityscapes"), WORK)
    lora = specs.lora_spec(*about)
    assert (lora.image_size, lora.fit, lora.gradient_checkpointing) == ([1024, 1024], "crop", True)
    smaller = specs.extract_spec(*about[:1], Options(name="cityscapes", image_size=[64, 128]), WORK)
    assert smaller.image_size == [64, 128]
    assert smaller.tiles and (smaller.tiles.size, smaller.tiles.overlap) == ([64, 64], 32)


def test_only_the_splits_that_are_used() -> None:
    """Features of SPair-71k's validation images would be extracted for nothing, and its pairs then lack features."""
    about = (EXPERIMENTS["spair71k"], Options(name="spair71k"), WORK)
    made = specs.extract_spec(*about)
    assert made.input.shards == [f"{WORK}/shards/trn-*.tar", f"{WORK}/shards/test-*.tar"]
    assert specs.lora_spec(*about).input.shards == made.input.shards[:1]
    heads = specs.head_specs(*about, made)
    assert {spec.task.pairs for spec in heads.values() if spec.task.type == "correspondence"} == {
        "pairs-t*.jsonl"
    }


def test_a_store_elsewhere() -> None:
    about = (EXPERIMENTS["horse21"], Options(name="horse21", store="s3://bucket/horses"), WORK)
    made = specs.extract_spec(*about)
    heads = specs.head_specs(*about, made)
    assert {made.store, *(head.store for head in heads.values())} == {"s3://bucket/horses"}


def test_candidates_of_gate() -> None:
    """Each group that differs in more than its seed; all can be measured, and by maps that have a Score."""
    options = Options(name="spair71k", image_size=[64, 64], **SMALL)  # type: ignore[arg-type]
    made = specs.gate_spec(EXPERIMENTS["spair71k"], options, WORK)
    found = made.candidates or []
    assert [one.name for one in found] == ["prompt-1", "lora-1", "lora-2", "controlnet-1"]
    able = [one for one in found if not one.name.startswith("lora")]  # whose files are not there yet
    candidates.check(made, able, Path(embedded.BACKBONE))


def test_groups_that_gate_selected() -> None:
    """They take the place of the convolutional features alone; attention features stay, under names of their own."""
    options = Options(name="horse21", image_size=[64, 64], gate=True, **SMALL)  # type: ignore[arg-type]
    experiment = EXPERIMENTS["horse21"]
    chosen = [
        {"name": "prompt", "prompt": "a horse, best quality", "t": 50, "taps": ["legacy"], "techniques": []}
    ]
    made = specs.extract_spec(experiment, options, WORK, chosen)
    head = specs.head_specs(experiment, options, WORK, made)["gate"]
    assert head.features.groups == ["prompt"]
    assert head.features.attention == [
        f"{name}/attn" for name in ("prompt-attn", "controlnet-attention", "lora-a-attn", "lora-b-attn")
    ]
    stored = {f"{array.group}/{array.tap}" for array in layouts(made, Path(embedded.BACKBONE))}
    assert set(head.features.attention) <= stored


@pytest.fixture(scope="module")
def full_size_configs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("configs") / "sd15"
    return full_size.write(folder, "StableDiffusionPipeline", full_size.SD_15)


@names
def test_the_cost_is_the_presets_and_a_plain_group_more(name: PublicName, full_size_configs: Path) -> None:
    """By the configs of the full-size network, so of what a real run takes."""
    experiment, folder = EXPERIMENTS[name], full_size_configs
    paper, made = presets.read(experiment.preset), specs.extract_spec(experiment, Options(name=name), WORK)
    found = cost(made, folder)
    plain = sum(array.row_bytes for array in layouts(made, folder) if array.group == "baseline")
    if experiment.left_out:
        assert found.passes < paper.passes + 1 and found.row_bytes < paper.bytes_per_image + plain
        return
    tiles = 3 if made.tiles else 1
    assert (found.passes, found.row_bytes) == (paper.passes + tiles, paper.bytes_per_image + plain)
