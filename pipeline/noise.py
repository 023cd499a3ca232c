"""Random numbers that belong to a sample, not to a process.

Drawn on the CPU in float32 from a counter-based generator whose key is a hash of all that may tell two draws apart,
so a row's numbers are the same alone, in any batch, on any worker and after any restart.
"""

from __future__ import annotations

import hashlib
import json
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Purpose = Literal["posterior", "noise"]


def normal(
    shape: tuple[int, ...], *, seed: int, group_seed: int, purpose: Purpose, shard: str, key: str
) -> NDArray[np.float32]:
    """Standard normal numbers of `shape`, float32, keyed by everything else."""
    identity = json.dumps([seed, group_seed, purpose, shard, key]).encode()
    philox = np.random.Philox(key=int.from_bytes(hashlib.sha256(identity).digest()[:16], "little"))
    return np.random.Generator(philox).standard_normal(shape, dtype=np.float32)
