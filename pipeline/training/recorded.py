"""A training step recorded once as CUDA graphs, and replayed: small networks wait for Python, not for the GPU.

A step of the embedded UNet is some six thousand kernels, which Python starts more slowly than a GPU runs them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

Batch = Mapping[str, Tensor]
"""What a step computes on, by name."""

_WARM_UP: Final = 3
"""Steps that run as they are before one is recorded: libraries choose their kernels in the first ones."""


@dataclass(frozen=True)
class _Recording:
    inputs: dict[str, Tensor]
    results: dict[str, Tensor]
    forward: torch.cuda.CUDAGraph
    update: torch.cuda.CUDAGraph


class RecordedStep:
    """Runs a step in two halves, and replays both from the fourth batch of a shape on.

    Args:
        forward: makes gradients of a batch, and returns numbers that are tensors on the GPU; it may not wait for it.
        update: applies the gradients; may not wait for the GPU either.
    """

    def __init__(self, forward: Callable[[Batch], dict[str, Tensor]], update: Callable[[], None]) -> None:
        self._forward, self._update = forward, update
        self._seen: Counter[Hashable] = Counter()
        self._recordings: dict[Hashable, _Recording] = {}

    def __call__(self, batch: Batch) -> tuple[dict[str, Tensor], Callable[[], None]]:
        """What `forward` returns, to be read before the next call, and what is to be called as `update`."""
        shapes = tuple((name, value.shape) for name, value in batch.items())
        self._seen[shapes] += 1
        if self._seen[shapes] <= _WARM_UP:
            return self._aside(batch), self._update
        if shapes not in self._recordings:
            self._recordings[shapes] = self._record(batch)
        recording = self._recordings[shapes]
        for name, value in batch.items():
            recording.inputs[name].copy_(value)
        recording.forward.replay()
        return recording.results, recording.update.replay

    def _aside(self, batch: Batch) -> dict[str, Tensor]:
        """On a stream of its own, as what is to be recorded later must have run before."""
        stream, current = torch.cuda.Stream(), torch.cuda.current_stream()
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            results = self._forward(batch)
        current.wait_stream(stream)
        return results

    def _record(self, batch: Batch) -> _Recording:
        inputs = {name: value.clone() for name, value in batch.items()}
        forward, update = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(forward):
            results = self._forward(inputs)
        with torch.cuda.graph(update):
            self._update()
        return _Recording(inputs, results, forward, update)
