"""The drawn images depend on the seed and the shards alone; bad ones give way, and nothing is lost in silence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.lora_images import Drawn, draw_images
from pipeline.shards import list_shards
from schemas.lora import LoraSpec
from tests.tars import jpeg, make_tar


def write(folder: Path, shards: int, images: int, bad: tuple[str, ...] = ()) -> None:
    """Shards of samples with captions; `bad` names samples, as SHARD/KEY, without a good image."""
    folder.mkdir(exist_ok=True)
    for shard in range(shards):
        members = []
        for image in range(images):
            good = f"{shard}.tar/{image}" not in bad
            members.append((f"{image}.jpg", jpeg(20, 30, 100 * shard + image) if good else b"no image"))
            members.append((f"{image}.txt", f"picture {image} of {shard}".encode()))
        make_tar(folder / f"{shard}.tar", members)


def spec_of(folder: Path, **changes: Any) -> LoraSpec:
    document = {
        "version": 1,
        "lora": "out",
        "input": {"shards": f"{folder}/*.tar"},
        "image_size": [16, 24],
        "images": 5,
    }
    return LoraSpec.model_validate(document | changes)


def drawn(spec: LoraSpec) -> Drawn:
    return draw_images(spec, list_shards(spec.input))


def ids(found: Drawn) -> list[str]:
    return [one.id for one in found.examples]


def test_the_seed_draws_them(tmp_path: Path) -> None:
    write(tmp_path, 3, 8)
    spec = spec_of(tmp_path)
    found = drawn(spec)
    assert len(set(ids(found))) == 5
    assert ids(found) == ids(drawn(spec)) != ids(drawn(spec_of(tmp_path, seed=1)))
    for one in found.examples:
        shard, _, key = one.id.partition(".tar/")
        assert one.prompt == f"picture {key} of {shard}"
        assert one.pixels.shape == (3, 16, 24)


def test_every_image_has_the_same_chance(tmp_path: Path) -> None:
    """Of shards that are all looked into, however unequal they are."""
    write(tmp_path, 1, 12)
    make_tar(tmp_path / "small.tar", [("0.jpg", jpeg(20, 30)), ("1.jpg", jpeg(20, 30))])
    counts: dict[str, int] = {}
    for seed in range(140):
        for one in ids(drawn(spec_of(tmp_path, images=2, seed=seed))):
            counts[one] = counts.get(one, 0) + 1
    assert len(counts) == 14 and sum(counts.values()) == 280
    assert all(6 <= count <= 38 for count in counts.values())  # 20 expected, 4.3 standard deviations


def test_bad_ones_give_way(tmp_path: Path) -> None:
    write(tmp_path, 2, 4, bad=("0.tar/1", "1.tar/0", "1.tar/2"))
    found = drawn(spec_of(tmp_path))
    assert ids(found) == ["0.tar/0", "0.tar/2", "0.tar/3", "1.tar/1", "1.tar/3"]
    assert set(found.bad) == {"undecodable-image"} and found.bad.total() <= 3


def test_fewer_than_asked_for_are_all_there_are(tmp_path: Path) -> None:
    write(tmp_path, 2, 3, bad=("0.tar/1",))
    found = drawn(spec_of(tmp_path, images=30))
    assert len(found.examples) == 5 and dict(found.bad) == {"undecodable-image": 1}


def test_no_more_shards_are_read_than_images_are_asked_for(tmp_path: Path) -> None:
    """Unless too few of their images are good."""
    write(tmp_path, 6, 4)
    assert len({one.shard for one in drawn(spec_of(tmp_path, images=2)).examples}) <= 2
    write(tmp_path, 6, 1, bad=tuple(f"{shard}.tar/0" for shard in range(5)))
    found = drawn(spec_of(tmp_path, images=2))
    assert ids(found) == ["5.tar/0"] and found.bad.total() == 5


def test_no_image_at_all_is_refused(tmp_path: Path) -> None:
    write(tmp_path, 1, 2, bad=("0.tar/0", "0.tar/1"))
    with pytest.raises(ValueError, match=r"no good image in 1 shards \(2 undecodable-image\)"):
        drawn(spec_of(tmp_path))
    make_tar(tmp_path / "0.tar", [])
    with pytest.raises(ValueError, match=r"in 1 shards \(no samples\)"):
        drawn(spec_of(tmp_path))


def test_a_tar_without_its_end_gives_what_it_has(tmp_path: Path) -> None:
    write(tmp_path, 1, 6)
    whole = (tmp_path / "0.tar").read_bytes()
    (tmp_path / "0.tar").write_bytes(whole[: len(whole) // 2])
    found = drawn(spec_of(tmp_path, images=6))
    assert 1 <= len(found.examples) < 6


def test_without_a_caption_the_fallback_is_the_prompt(tmp_path: Path) -> None:
    make_tar(tmp_path / "0.tar", [("0.jpg", jpeg(20, 30)), ("1.jpg", jpeg(20, 30)), ("1.txt", b"a duck")])
    found = drawn(spec_of(tmp_path, prompt="{caption}, outdoors", fallback="a thing"))
    assert [one.prompt for one in found.examples] == ["a thing", "a duck, outdoors"]
    assert found.without_text == 1
    fixed = drawn(spec_of(tmp_path, prompt="a bird"))
    assert [one.prompt for one in fixed.examples] == ["a bird"] * 2 and fixed.without_text == 0


def test_prompts_take_fields_of_the_json(tmp_path: Path) -> None:
    members = [("0.jpg", jpeg(20, 30)), ("0.json", b'{"name": "duck"}')]
    make_tar(tmp_path / "0.tar", members)
    assert drawn(spec_of(tmp_path, prompt="a {json:name}")).examples[0].prompt == "a duck"
