"""From stored maps to a head's levels: shapes as announced, each channel where it belongs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline import FeatureStore
from pipeline.heads.networks.front import Front, Levels
from tests.stores import CHANNELS, TAPS

GROUPS = ("one", "two", "three")
SHAPES = {
    **{f"{group}/fine": [2, 8, 6] for group in GROUPS},
    **{f"{group}/coarse": [3, 4, 3] for group in GROUPS},
    "two/attn": [5, 4, 4],
}


def batch(images: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(images, *shape, generator=generator) for name, shape in SHAPES.items()}


def front(**changes: Any) -> Front:
    given: dict[str, Any] = {"groups": GROUPS, "taps": ("fine", "coarse")} | changes
    return Front(SHAPES, given.pop("groups"), given.pop("taps"), **given)


@pytest.mark.parametrize("attention", [(), ("two/attn",)])
@pytest.mark.parametrize("assigners", [0, 1, 2])
@pytest.mark.parametrize("groups", [GROUPS, ("two",)])
@pytest.mark.parametrize("levels", ["aligned", "native"])
def test_shapes_are_as_announced(
    levels: Levels, groups: Sequence[str], assigners: int, attention: Sequence[str]
) -> None:
    made = front(groups=groups, assigners=assigners, levels=levels, attention=attention)
    found = made(batch(2))
    sizes = [(8, 6)] if levels == "aligned" else [(4, 3), (8, 6)]
    assert made.sizes == sizes
    assert [(one.shape[1], *one.shape[2:]) for one in found.levels] == [
        (channels, *size) for channels, size in zip(made.channels, sizes, strict=True)
    ]
    assert [part.shape[1:3] for part in found.parts] == [(made.parts, some) for some in made.part_channels]
    assert all(one.shape[1] == made.attention_channels == 5 * len(attention) for one in found.attention)
    if assigners and len(groups) > 1:
        assert found.weights is not None and found.weights.shape == (2, len(sizes), assigners, len(groups))
    else:
        assert found.weights is None


def test_groups_side_by_side_keep_their_values() -> None:
    """Without assigners each map can be found again: group by group, tap by tap, attention last."""
    maps = batch(2)
    level = front(assigners=0, attention=("two/attn",))(maps).levels[0]
    assert torch.equal(level[:, 5:7], maps["two/fine"])
    torch.testing.assert_close(level[:, 7:10, 0, 0], maps["two/coarse"][..., 0, 0])
    torch.testing.assert_close(level[:, 15:, 0, 0], maps["two/attn"][..., 0, 0])


def test_native_levels_go_from_coarse_to_fine() -> None:
    """Whatever order taps are named in; and each keeps its own resolution."""
    maps = batch(2)
    coarse, fine = front(groups=("one",), levels="native")(maps).levels
    assert torch.equal(coarse, maps["one/coarse"])
    assert torch.equal(fine, maps["one/fine"])


def test_levels_have_assigners_of_their_own() -> None:
    weights = front(levels="native")(batch(2)).weights
    assert weights is not None
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 2))
    assert not torch.allclose(weights[:, 0], weights[:, 1], atol=1e-6)


def test_channels_of_each_group_are_standardised_for_themselves() -> None:
    """Guards against statistics over all groups: one that is 1000 times as large would drown the others."""
    made, maps = front(assigners=0, attention=("two/attn",)), batch(8)
    maps["two/fine"] = 1000 * maps["two/fine"] + 50
    made.fit(
        [{name: value[:3] for name, value in maps.items()}, {name: value[3:] for name, value in maps.items()}]
    )
    found = made(maps)
    for place in range(3):
        fine = found.parts[0][:, place, :2]
        torch.testing.assert_close(fine.mean((0, 2, 3)), torch.zeros(2), atol=1e-4, rtol=0)
        torch.testing.assert_close(fine.std((0, 2, 3), correction=0), torch.ones(2), atol=1e-4, rtol=0)
    assert made.state_dict()["standardise.two/attn.std"].std() > 0


def test_what_was_fitted_is_saved() -> None:
    made, other, maps = front(), front(), batch(4)
    made.fit([maps])
    assert not any(value.requires_grad for value in made.buffers())
    other.load_state_dict(made.state_dict())
    assert torch.equal(other(maps).levels[0], made(maps).levels[0])


def test_fits_once_from_an_iterator() -> None:
    """A generator is used up by the first pass: a second look at it would see nothing."""
    made, maps = front(), batch(4)
    made.fit(iter([maps]))
    assert made.state_dict()["standardise.three/coarse.mean"].abs().min() > 0


def test_an_empty_batch() -> None:
    """As one of several processes may get at the end of an epoch."""
    for levels, made in ((1, front(attention=("two/attn",))), (2, front(levels="native"))):
        assert [len(level) for level in made(batch(0)).levels] == [0] * levels


def test_pooled_vectors_are_maps_of_one_cell() -> None:
    shapes = {f"{group}/tap": [4, 1, 1] for group in GROUPS}
    found = Front(shapes, GROUPS, ["tap"])({name: torch.randn(2, 4, 1, 1) for name in shapes})
    assert found.levels[0].shape == (2, 8, 1, 1)


def test_reads_a_store(built: Path) -> None:
    """Names, shapes and dtype are those of `FeatureStore`."""
    store = FeatureStore(str(built / "store"))
    shapes = {name: layout.shape for name, layout in store.taps.items()}
    made = Front(shapes, ["plain", "caption"], TAPS)
    rows = store.good()["row"].to_numpy()
    maps = {name: torch.from_numpy(values) for name, values in store.read(rows, list(shapes)).items()}
    made.fit([maps])
    assert made.channels == [2 * sum(CHANNELS)]
    level = made(maps).levels[0].detach()
    assert level.shape == (len(rows), 2 * sum(CHANNELS), 4, 4)
    assert 0.3 < float(level.std()) < 1.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups": ()}, "0 feature groups with 2 taps"),
        ({"taps": ()}, "3 feature groups with 0 taps"),
        ({"taps": ("other",)}, "there is no 'one/other'; known are one/coarse"),
        ({"attention": ("one/attn",)}, "there is no 'one/attn'"),
    ],
)
def test_names_that_are_not_there(changes: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        front(**changes)


def test_maps_over_pairs_of_places_are_refused() -> None:
    name = "one/mid-vit-block0-self-map"
    with pytest.raises(ValueError, match=r"'one/mid-vit-block0-self-map' is \[8, 16, 16\], an attention map"):
        Front(SHAPES | {name: [8, 16, 16]}, GROUPS, ["fine"], attention=[name])


def test_groups_whose_taps_differ_in_shape() -> None:
    shapes = SHAPES | {"three/fine": [2, 4, 6]}
    with pytest.raises(ValueError, match=r"'one/fine' is \[2, 8, 6\] and 'three/fine' is \[2, 4, 6\]"):
        Front(shapes, GROUPS, ["fine"])


def test_batches_that_do_not_fit() -> None:
    maps = batch(2)
    with pytest.raises(ValueError, match=r"map 'one/fine' is \[2, 3, 4, 3\]; expected \[B, 2, 8, 6\]"):
        front()(maps | {"one/fine": maps["one/coarse"]})
    del maps["two/coarse"]
    with pytest.raises(ValueError, match="no map 'two/coarse', only one/coarse"):
        front().fit([maps])
    with pytest.raises(ValueError, match="feature 'one/fine': there are no maps"):
        front().fit([])
