"""What each tap costs: its shape, and how much of a pass the network computes until it is known.

All from the config: the network runs on torch's meta device, where nothing is computed, with every operation counted.
Counted are matrix products, convolutions and attention, a multiplication with its addition as two operations;
attention maps, which are made beside the network, are not.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pipeline.meta import meta_call, on_meta
from pipeline.recorder import Recorder, config_of
from schemas import taps as vocabulary


@dataclass(frozen=True)
class TapCost:
    """Of one tap and image."""

    shape: tuple[int, ...]
    """[C, h, w] or [heads, query, key]."""
    flops: int
    """Operations from the start of the pass until the tap fires."""


@dataclass(frozen=True)
class Costs:
    """Of a network and a size of image."""

    taps: dict[str, TapCost]
    """Every site, in the network's order."""
    flops: int
    """Operations of a whole pass."""


def costs(network_class: Any, config: Mapping[str, Any], inputs: Callable[[Any], Mapping[str, Any]]) -> Costs:
    """Count one pass; the arguments are those of `pipeline.taps.shapes`."""
    network = on_meta(network_class, config)
    meter = _Meter(network)
    with meter.counter:
        meter.run(meta_call(network, inputs))
    found = meter.found
    return Costs({tap: found[tap] for tap in meter.taps}, max(cost.flops for cost in found.values()))


class _Meter(Recorder):
    """Notes what was counted when a tap fires."""

    def __init__(self, network: Any) -> None:
        super().__init__(network, vocabulary.names(config_of(network)), max_map_bytes=math.inf)
        self.counter = FlopCounterMode(display=False)
        self.found: dict[str, TapCost] = {}
        self._beside = 0  # operations of attention maps so far

    def keep(self, tap: str, value: Callable[[], Tensor]) -> Tensor:
        before = self.counter.get_total_flops()
        kept = value()
        self.found[tap] = TapCost(tuple(kept.shape[1:]), before - self._beside)
        self._beside += self.counter.get_total_flops() - before
        return kept
