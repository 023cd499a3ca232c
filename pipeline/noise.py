"""Random numbers that belong to a sample, not to a process.

Drawn on the CPU in float32 from a counter-based generator whose key is a hash of all that may tell two draws apart,
so a row's numbers are the same alone, in any batch, on any worker and after any restart.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Purpose = Literal["posterior", "noise"]


def normal(
    shape: tuple[int, ...], *, seed: int, group_seed: int, purpose: Purpose, shard: str, key: str
) -> NDArray[np.float32]:
    """Standard normal numbers of `shape`, float32, keyed by everything else."""
    identity = json.dumps([seed, group_seed, purpose, shard, key]).encode()
    philox = np.random.Philox(key=int.from_bytes(hashlib.sha256(identity).digest()[:16], "little"))
    return np.random.Generator(philox).standard_normal(shape, dtype=np.float32)


class Numbers:
    """The random numbers of a batch, drawn for whole pictures and each kind once.

    Args:
        ids: (shard id, key) of each slot; padding has zeros.
        shape: [c, h, w] of a whole picture's latents.
        seed: of the spec.
    """

    def __init__(self, ids: Sequence[tuple[str, str] | None], shape: tuple[int, int, int], seed: int) -> None:
        self._ids, self._shape, self._seed = ids, shape, seed
        self._drawn: dict[tuple[int, Purpose], NDArray[np.float32]] = {}

    def at(self, group_seed: int, purpose: Purpose, part: tuple[slice, slice]) -> Tensor:
        """Standard normal numbers for a part of every picture, float32 [B, c, rows, columns]."""
        if (group_seed, purpose) not in self._drawn:
            self._drawn[group_seed, purpose] = np.stack(
                [self._of(one, group_seed, purpose) for one in self._ids]
            )
        return torch.from_numpy(self._drawn[group_seed, purpose][:, :, *part])

    def _of(self, sample: tuple[str, str] | None, group_seed: int, purpose: Purpose) -> NDArray[np.float32]:
        if sample is None:
            return np.zeros(self._shape, np.float32)
        shard, key = sample
        return normal(
            self._shape, seed=self._seed, group_seed=group_seed, purpose=purpose, shard=shard, key=key
        )
