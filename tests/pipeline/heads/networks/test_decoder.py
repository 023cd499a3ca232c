"""UPerNet on pyramids of any shape."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.heads.networks.decoder import UPerNet


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=4))
def test_any_levels(shapes: list[tuple[int, int, int]]) -> None:
    """Sides need not be multiples of each other, nor as large as the pooled maps."""
    decoder = UPerNet([channels for channels, _, _ in shapes], 3, width=8)
    found = decoder([torch.randn(2, *shape) for shape in shapes])
    assert found.shape == (2, 3, *shapes[-1][1:])
    found.sum().backward()
    assert all(parameter.grad is not None for parameter in decoder.parameters())


def test_images_do_not_depend_on_their_batch() -> None:
    """As they would with batch norm, whose running state no checkpoint of weights has."""
    decoder, levels = UPerNet([3, 2], 4, width=16), [torch.randn(3, 3, 4, 4), torch.randn(3, 2, 8, 8)]
    torch.testing.assert_close(decoder(levels)[1:2], decoder([level[1:2] for level in levels]))
    assert not list(decoder.buffers())


def planted(images: int) -> tuple[list[Tensor], Tensor]:
    """Levels, and labels [n, 8, 8] that take both: where a fine level says so, and only if the coarse one has more of
    its first channel than of its second in the whole image."""
    coarse, fine = torch.rand(images, 2, 4, 4), torch.randint(2, (images, 1, 8, 8)).float()
    whole = coarse.mean((2, 3))
    return [coarse, fine], (fine[:, 0] * (whole[:, 0] > whole[:, 1])[:, None, None]).long()


def test_every_cell_sees_the_whole_image() -> None:
    decoder = UPerNet([2, 1], 2, width=16)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=0.01)
    for _ in range(80):
        levels, labels = planted(16)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(decoder(levels), labels).backward()
        optimizer.step()
    levels, labels = planted(64)
    assert (decoder(levels).argmax(1) == labels).float().mean() > 0.9


def test_coarse_levels_are_added_on_the_way() -> None:
    """What the finest level gives to the last layers takes in the coarsest, which is not only joined at the end."""
    decoder, found = UPerNet([3, 2, 2], 4, width=8), list[Tensor]()
    decoder.smooth[-1].register_forward_hook(lambda module, inputs, output: found.append(output))
    finer = [torch.randn(1, 2, 6, 6), torch.randn(1, 2, 9, 9)]
    for _ in range(2):
        decoder([torch.randn(1, 3, 4, 4), *finer])
    assert not torch.allclose(found[0], found[1])


def test_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="no levels"):
        UPerNet([], 3)
    with pytest.raises(ValueError, match="width 20; expected a multiple of 8"):
        UPerNet([3], 3, width=20)
    with pytest.raises(ValueError, match="got 1 levels; it was made for 2"):
        UPerNet([3, 2], 3, width=8)([torch.zeros(1, 3, 4, 4)])
