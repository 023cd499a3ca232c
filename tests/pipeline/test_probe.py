"""Two images before a job: what cannot be stored, what does not fit, and nothing to look at."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline import families, sources
from pipeline.batch import Batch
from pipeline.features import Engine, Features, GroupTap
from pipeline.layouts import layouts
from pipeline.probe import Probe, ProbeError, check, measure
from pipeline.shards import Shard, list_shards
from schemas.spec import ExtractSpec
from tests.engines import group, make_engine, make_spec
from tests.tars import make_tar, png

LAST = "up-level3-repeat2-vit-out"
PROBE = Probe(
    device="cpu x86_64",
    seconds_per_image=1.0,
    bytes_per_image=100,
    fixed_bytes=1000,
    free_bytes=1000,
    unstorable=[],
)


def shards(tmp_path: Path, *tars: list[bytes]) -> list[Shard]:
    for place, images in enumerate(tars):
        make_tar(tmp_path / f"{place}.tar", [(f"{one}.png", data) for one, data in enumerate(images)])
    return list_shards(make_spec(input={"shards": f"{tmp_path}/*.tar"}).input)


class Watched(Engine):
    """Remembers its batches and computes nothing."""

    batches: list[Batch]

    def run(self, batch: Batch) -> Features:
        self.batches.append(batch)
        time.sleep(0.05)
        maps: dict[GroupTap, NDArray[np.generic]] = {("plain", "x"): np.ones((2, 1, 1, 1))}
        return Features(maps, {("plain", "x"): np.ones((2, 1), np.float32)}, {"plain": [None] * 2})


@pytest.fixture
def watched() -> Watched:
    engine = Watched.__new__(Watched)
    engine.batches, engine.recipes, engine.references = [], [], []
    return engine


def test_two_good_images_are_measured(watched: Watched, tmp_path: Path) -> None:
    spec = make_spec(group(prompt="{caption}"))
    found = shards(tmp_path, [b"bad"], [b"bad", png(8, 8, 1), b"bad", png(8, 8, 2), png(8, 8, 3)])
    probe = measure(watched, spec, found, "cpu")
    assert len(watched.batches) == 2, "once to warm up, once to measure"
    assert watched.batches[1].ids == [("1.tar", "1"), ("1.tar", "3")]
    assert watched.batches[1].texts == {"caption": [None, None]}, (
        "a missing caption is not what is looked for"
    )
    assert 0.02 < probe.seconds_per_image < 0.2
    assert probe.device.startswith("cpu") and probe.fixed_bytes > 0 and probe.free_bytes > 0
    assert probe.unstorable == probe.not_finite == []


def test_a_single_image_counts_twice(watched: Watched, tmp_path: Path) -> None:
    measure(watched, make_spec(), shards(tmp_path, [png(8, 8)]), "cpu")
    assert watched.batches[0].ids == [("0.tar", "0")] * 2


def test_batches_of_one_are_probed_by_one(watched: Watched, tmp_path: Path) -> None:
    """Two images were run, and a map refused that is not too large for one."""
    measure(watched, make_spec(backbone={"batch_size": 1}), shards(tmp_path, [png(8, 8)] * 2), "cpu")
    assert watched.batches[0].ids == [("0.tar", "0")]


def test_groups_that_lack_something_in_every_image(watched: Watched, tmp_path: Path) -> None:
    """A dry run said nothing of a caption field that no sample has."""
    spec = make_spec(group(), group("words", prompt="{caption}"))
    assert measure(watched, spec, shards(tmp_path, [png(8, 8)] * 2), "cpu").lacking == {"words": "no-caption"}


def test_no_image_that_can_be_decoded(watched: Watched, tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match="none of the 2 shards looked at has an image that can be decoded"):
        measure(watched, make_spec(), shards(tmp_path, [b"bad"] * 3, []), "cpu")


def test_peak_memory_of_activations(
    watched: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held for a moment only, in a run that is short."""
    held = 200 * 2**20

    def run(batch: Batch) -> Features:
        np.ones(held, np.uint8).sum()
        return Watched.run(watched, batch)

    monkeypatch.setattr(watched, "run", run)
    probe = measure(watched, make_spec(), shards(tmp_path, [png(8, 8)] * 2), "cpu")
    assert 0.5 * held < 2 * probe.bytes_per_image < 2 * held


def test_peak_of_a_gpu_is_not_that_of_loading(
    watched: Watched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The allocator's peak is of the process's whole life: while weights load it may be above all that follows,
    and the memory of an image came out as 0."""
    memory = {"now": 1000, "peak": 5000}

    def run(batch: Batch) -> Features:
        memory["peak"] = max(memory["peak"], memory["now"] + 300)
        return Watched.run(watched, batch)

    monkeypatch.setattr(watched, "run", run)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: memory["now"])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: memory["peak"])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: memory.update(peak=memory["now"]))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (4000, 8000))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Test GPU")
    probe = measure(watched, make_spec(), shards(tmp_path, [png(8, 8)]), "cuda")
    assert (probe.device, probe.fixed_bytes, probe.free_bytes) == ("Test GPU", 1000, 4000)
    assert probe.bytes_per_image == 150


def scaled_engine(spec: ExtractSpec, factor: float) -> Engine:
    """An engine whose last tap gives values so many times larger."""
    folder = sources.locate(spec.backbone)
    backbone = families.load(folder, dtype=torch.float32, device="cpu")
    backbone.network.up_blocks[3].attentions[2].proj_out.weight.mul_(factor)
    return Engine(backbone, spec, layouts(spec, folder))


def test_values_that_float16_cannot_hold_are_proposed_as_float32() -> None:
    spec = make_spec(group(taps=["up-level1-upsampler-out", LAST]))
    probe = measure(scaled_engine(spec, 1e6), spec, list_shards(spec.input), "cpu")
    assert probe.unstorable == [("plain", LAST)] and probe.not_finite == []
    with pytest.raises(
        ProbeError, match=f"ask for float32:\n  groups: plain: taps: {{name: {LAST}, dtype: float32}}$"
    ):
        check(probe, spec, 0, 1)
    cured = make_spec(group(taps=["up-level1-upsampler-out", {"name": LAST, "dtype": "float32"}]))
    assert measure(scaled_engine(cured, 1e6), cured, list_shards(spec.input), "cpu").unstorable == []


def test_values_that_the_network_broke_are_not_cured_by_float32() -> None:
    """float32 was proposed for them, which stores the same infinities."""
    spec = make_spec(
        group(taps=["up-level1-upsampler-out", LAST]), backbone={"dtype": "float16", "batch_size": 4}
    )
    probe = measure(scaled_engine(spec, float("inf")), spec, list_shards(spec.input), "cpu")
    assert probe.not_finite == [("plain", LAST)] and probe.unstorable == []
    with pytest.raises(
        ProbeError, match=f"backbone.dtype is float16, in which .* not finite at plain/{LAST}; compute in"
    ):
        check(probe, spec, 0, 1)


def with_batch(size: int) -> ExtractSpec:
    return make_spec(backbone={"batch_size": size})


@pytest.mark.parametrize(
    ("probe", "held", "actors", "fits"),
    [
        (PROBE, 0, 1, 10),
        (PROBE, 500, 1, 5),
        (PROBE, 0, 3, 3),
        (PROBE, 100, 2, 4),
        (replace(PROBE, device="NVIDIA H100"), 10**9, 1, 10),  # blocks are held in main memory, not there
    ],
)
def test_the_largest_batch_that_fits_is_named(probe: Probe, held: int, actors: int, fits: int) -> None:
    check(probe, with_batch(fits), held, actors)
    with pytest.raises(ProbeError, match=rf"batch_size is {fits + 1}, .* batch_size: {fits} would fit$"):
        check(probe, with_batch(fits + 1), held, actors)


@pytest.mark.parametrize("held", [950, 10**6])
def test_not_even_one_image_fits(held: int) -> None:
    with pytest.raises(ProbeError, match=r"not even batch_size: 1 fits; use fewer actors$"):
        check(PROBE, with_batch(1), held, 1)


def test_a_real_engine_passes() -> None:
    spec = make_spec()
    probe = measure(make_engine(spec), spec, list_shards(spec.input), "cpu")
    check(probe, spec, 0, 1)
