"""The order of an epoch and how it is shared out: pure functions, so that ranks, workers and resumed runs agree.

Rows that lie together are read together far faster, most of all from an object store, where each request has its price.
So a window of several blocks, drawn from all over the data set, is read whole and its rows are shuffled among each
other: a batch is mixed from as many places as a window has blocks. One window for everything is a full shuffle.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.int64]


def epoch_order(blocks: Rows, seed: int, epoch: int, window: int | None = None) -> tuple[Rows, Rows]:
    """Places in a data set, each once, in the order of an epoch, and the window that each belongs to: int64 [n] both.

    Only raw random bits and stable sorts are used, which numpy keeps the same over its releases: a run may be resumed
    with another one.

    Args:
        blocks: for each place the number of the block that it lies in, [n].
        seed: at least 0.
        epoch: at least 0; each has an order of its own.
        window: blocks whose rows are shuffled together; None for all.
    """
    random = np.random.Philox(np.random.SeedSequence([seed, epoch]))
    windows = np.zeros(len(blocks), np.int64)
    if window is not None and len(blocks):
        known, block = np.unique(blocks, return_inverse=True)
        turns = np.argsort(np.argsort(random.random_raw(len(known)), kind="stable"))
        count = -(-len(known) // window)
        windows = turns[block] * count // len(known)  # of even sizes: a small last one would be mixed badly
    order = np.lexsort((random.random_raw(len(blocks)), windows))
    return order, windows[order]


def global_batches(order: Rows, batch_size: int, start: int = 0, *, drop_last: bool = False) -> list[Rows]:
    """The batches of all ranks together, from a place in the order on; the last may be smaller, or is left out."""
    batches = [order[at : at + batch_size] for at in range(start, len(order), batch_size)]
    if drop_last and batches and len(batches[-1]) < batch_size:
        batches.pop()
    return batches


def share(batch: Rows, rank: int, ranks: int) -> Rows:
    """A rank's part of a global batch: contiguous, as even as can be; some are empty where ranks outnumber rows."""
    return batch[len(batch) * rank // ranks : len(batch) * (rank + 1) // ranks]
