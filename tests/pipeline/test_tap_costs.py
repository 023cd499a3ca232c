"""What is counted without computing: the operations that a real pass makes, up to each tap."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.recorder import Recorder, config_of
from pipeline.tap_costs import Costs, costs
from schemas.taps import names
from tests import networks


def counted(name: str) -> Costs:
    network_class, _ = networks.CONFIGS[name]
    return costs(network_class, config_of(networks.network(name)), lambda _: networks.inputs(name))


@torch.no_grad()
def by_hand(name: str, taps: list[str], patch: pytest.MonkeyPatch) -> dict[str, int]:
    """Operations until each tap of a real pass, from the sizes of what linear layers, convolutions and attention
    are given; no tap may be a map."""
    network, arguments = networks.network(name), networks.inputs(name)
    total, attend = 0, functional.scaled_dot_product_attention

    def after(module: Any, args: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        total += 2 * output.numel() * math.prod(module.weight.shape[1:])

    def attention(query: Tensor, key: Tensor, *rest: Any, **options: Any) -> Tensor:
        nonlocal total
        total += 2 * 2 * query.numel() * key.shape[-2]
        return attend(query, key, *rest, **options)

    class Meter(Recorder):
        def keep(self, tap: str, value: Any) -> Tensor:
            found[tap] = total
            return super().keep(tap, value)

    found: dict[str, int] = {}
    patch.setattr(functional, "scaled_dot_product_attention", attention)
    layers = [module for module in network.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    handles = [module.register_forward_hook(after) for module in layers]
    try:
        Meter(network, taps).run(lambda: network(**arguments))
    finally:
        for handle in handles:
            handle.remove()
    return found


@pytest.mark.parametrize("name", ["pixart", "sd3", "flux"])
def test_counts_are_those_of_a_real_pass(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps are made beside the network: they must add nothing to what comes after them."""
    found = counted(name)
    taps = [tap for tap in found.taps if not tap.endswith("-map")]
    assert {tap: found.taps[tap].flops for tap in taps} == by_hand(name, taps, monkeypatch)


@pytest.mark.parametrize("name", networks.CONFIGS)
def test_every_tap_in_order(name: str) -> None:
    found = counted(name)
    assert list(found.taps) == names(config_of(networks.network(name)))
    flops = [cost.flops for tap, cost in found.taps.items() if not tap.endswith("-map")]
    assert flops == sorted(flops) and flops[-1] == found.flops
    assert found.taps[next(tap for tap in found.taps if tap.endswith("self-map"))].shape[1] == 24
