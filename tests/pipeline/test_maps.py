"""Attention maps beside the network: equal to the softmax that its fused kernel makes, whole and reduced."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from pipeline import maps
from pipeline.families import flux
from pipeline.maps import Scores, attention_map
from pipeline.recorder import Recorder, config_of
from schemas.taps import Map, as_map, names
from tests import networks

SITE = "mid-vit-block0-self-map"


@contextmanager
def explicit_softmax() -> Iterator[list[Tensor]]:
    """In place of torch's fused attention, one that spells it out and keeps each call's weights [B, heads, q, k]."""
    found: list[Tensor] = []

    def attend(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *_: Any, **__: Any
    ) -> Tensor:
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        found.append((scores if attn_mask is None else scores + attn_mask).softmax(-1))
        return found[-1] @ value

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(functional, "scaled_dot_product_attention", attend)
        yield found


def kept(weights: Tensor, tap: str, name: str) -> Tensor:
    """The part of a layer's weights that a tap holds: the image's queries, and its keys or the prompt's."""
    if name in ("pixart", "hunyuan") or tap.endswith("dual-map"):
        return weights
    image = weights.shape[-2] if name == "deepfloyd" else weights.shape[-1] - networks.TEXT
    first = slice(None, image) if name == "sd3" else slice(-image, None)  # FLUX and IF: the prompt first
    rest = slice(image, None) if name == "sd3" else slice(None, -image)
    return weights[:, :, first, first if tap.endswith("self-map") else rest]


@torch.no_grad()
@pytest.mark.parametrize("name", networks.CONFIGS)
def test_maps_are_those_that_the_kernel_makes(name: str) -> None:
    """Norms of queries and keys, rotation, masks and the order of image and prompt all change them."""
    network = networks.network(name)
    taps = [tap for tap in names(config_of(network)) if tap.endswith("-map")]
    arguments = networks.inputs(name, batch=2)
    with explicit_softmax() as layers:
        network(**arguments)
    if name == "hunyuan":
        layers = layers[1:]  # the first pools the prompt for the time embedding
    found = Recorder(network, taps).run(lambda: network(**arguments))
    joint = name in ("sd3", "flux", "deepfloyd")
    calls = iter(layers)
    for tap in taps:
        if not (joint and tap.endswith("-cross-map")):  # else the same call as its self-map's
            weights = next(calls)
        want = kept(weights, tap, name)
        assert found[tap].shape == want.shape
        assert torch.allclose(found[tap], want, atol=1e-6), tap
    assert next(calls, None) is None


@torch.no_grad()
@pytest.mark.parametrize("name", networks.CONFIGS)
def test_maps_leave_the_network_alone(name: str) -> None:
    network = networks.network(name)
    processors, arguments = dict(network.attn_processors), networks.inputs(name)
    every = names(config_of(network))
    plain = network(**arguments, return_dict=False)[0]
    found = Recorder(network, every).run(lambda: network(**arguments))
    if name == "flux":
        plain = flux.unpack(plain, 8, 12)
    assert torch.equal(found[every[-1]], plain)
    assert all(network.attn_processors[path] is processor for path, processor in processors.items())


def scores(grid: tuple[int, int], *, prompt: int = 0, heads: int = 3, batch: int = 2) -> Scores:
    generator, cells = torch.Generator().manual_seed(5), grid[0] * grid[1]
    query = torch.randn(batch, heads, cells, 4, generator=generator)
    key = torch.randn(batch, heads, prompt + cells, 4, generator=generator)
    mask = torch.randn(batch, heads, 1, prompt + cells, generator=generator)
    return Scores(query, key, 0.5, mask)


def by_hand(whole: Tensor, grid: tuple[int, int], pool: int) -> Tensor:
    """Cell by cell."""
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    cell = (rows // pool * -(-grid[1] // pool) + columns // pool).flatten()
    count = int(cell.max()) + 1
    member = functional.one_hot(cell, count).to(whole)  # [tokens, cells]
    return (member / member.sum(0)).T @ whole @ member


@settings(max_examples=60, deadline=None)
@given(
    grid=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    pool=st.sampled_from([2, 4, 8]),
    prompt=st.integers(0, 3),
    work=st.integers(1, 4000),
)
def test_pooled_is_the_whole_map_cell_by_cell(
    grid: tuple[int, int], pool: int, prompt: int, work: int
) -> None:
    """In however small pieces it is made, and where cells do not fill the grid."""
    given_scores = scores(grid, prompt=prompt)
    whole = attention_map(given_scores, "image", grid, Map(SITE), 1e9)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(maps, "_WORK_BYTES", work)
        found = attention_map(given_scores, "image", grid, Map(SITE, pool=pool), 1e9)
        again = attention_map(given_scores, "image", grid, Map(SITE), 1e9)
    assert torch.allclose(found, by_hand(whole, grid, pool), atol=1e-6)
    assert torch.allclose(again, whole, atol=1e-6)
    if not prompt:
        assert torch.allclose(found.sum(-1), torch.ones(found.shape[:3]), atol=1e-5)


@pytest.mark.parametrize("how", [Map(SITE), Map(SITE, over_heads=True), Map(SITE, pool=4)])
def test_no_more_than_a_piece_exists_at_once(how: Map, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    softmax = Scores.softmax

    def measured(self: Scores, *piece: Any) -> Tensor:
        weights = softmax(self, *piece)
        sizes.append(4 * weights.numel())
        return weights

    monkeypatch.setattr(Scores, "softmax", measured)
    monkeypatch.setattr(maps, "_WORK_BYTES", 20_000)
    found = attention_map(scores((12, 16)), "image", (12, 16), how, 1e9)
    assert max(sizes) <= max(20_000, 4 * 192 * (4 * 16 if how.pool > 1 else 1))
    whole = scores((12, 16))
    plain = torch.stack([whole.softmax(image, slice(None), slice(None)) for image in range(2)])
    want = plain.mean(1, keepdim=True) if how.over_heads else plain
    if how.pool > 1:
        want = by_hand(plain, (12, 16), 4)
    assert torch.allclose(found, want, atol=1e-6)


def test_a_row_of_self_and_cross_sums_to_one() -> None:
    both = [
        attention_map(scores((3, 4), prompt=5), keys, (3, 4), Map(SITE), 1e9) for keys in ("image", "text")
    ]
    assert both[1].shape[-1] == 5
    assert torch.allclose(both[0].sum(-1) + both[1].sum(-1), torch.ones(2, 3, 12))


@pytest.mark.parametrize(
    ("how", "advice"),
    [
        (Map("x-self-map"), "or the pooled map x-self-map-pooled4$"),
        (Map("x-self-map", pool=2), "or the pooled map x-self-map-pooled4$"),
        (Map("x-cross-map"), "or the map of a level with a lower resolution$"),
    ],
)
def test_a_map_too_large_is_refused_with_its_size_and_the_cure(how: Map, advice: str) -> None:
    cells = 64 if how.pool == 1 else 16
    with pytest.raises(
        ValueError,
        match=rf"^tap {how.site}: 2 images x 3 heads x {cells} x {cells} tokens in float32 are 0\.00 GiB, .*{advice}",
    ):
        attention_map(scores((8, 8)), "all", (8, 8), how, 4 * 2 * 3 * 16 * 16 - 1)
    attention_map(scores((8, 8)), "all", (8, 8), Map("x-self-map", pool=4), 4 * 2 * 3 * 16 * 16 - 1)


@torch.no_grad()
@pytest.mark.parametrize("name", ["sd3", "flux", "deepfloyd"])
def test_reduced_maps_of_a_network(name: str) -> None:
    """Through the recorder, which knows the grid: 3 x 5 or 6 x 10 tokens, not square and no multiple of 4."""
    network, arguments = networks.network(name), networks.inputs(name, size=(6, 10))
    whole = [tap for tap in names(config_of(network)) if tap.endswith("self-map")]
    asked = [*whole, *(f"{tap}-pooled4" for tap in whole), *(f"{tap}-mean" for tap in whole)]
    found = Recorder(network, asked).run(lambda: network(**arguments))
    for tap in whole:
        assert torch.allclose(found[f"{tap}-pooled4"], by_hand(found[tap], (3, 5), 4), atol=1e-6)
        assert torch.allclose(found[f"{tap}-mean"], found[tap].mean(1, keepdim=True), atol=1e-6)
    assert [as_map(tap) for tap in found] and len(found) == 3 * len(whole)
