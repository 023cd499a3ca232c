"""Batches for training: shuffled, read ahead, shared among ranks, and resumed where the last one was delivered.

Everything follows from the order of the epoch (`pipeline.order`) and one number: how many of its samples were
delivered. That order knows nothing of ranks and workers, so neither changes what a global batch holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np

from pipeline.order import Rows, epoch_order, global_batches, share
from pipeline.read_ahead import Batch, BatchReader, Items, in_processes, in_thread

_AHEAD_BYTES, _AHEAD_BATCHES = 16 * 2**20, 32


class FeatureLoader:
    """Batches of a data set; iterating gives one epoch, or what is left of one.

        loader = FeatureLoader(FeatureDataset("s3://bucket/features"), 32, shuffle=True, window=16, workers=2)
        for epoch in range(10):
            for batch in loader:
                ...

    A batch is {field: tensors stacked, anything else a list}. A loop that was left, or a loader that took a
    `state_dict`, goes on with the first batch that was not delivered; what was only read ahead does not count. One loop
    at a time.

    Each rank gets as many batches as the others. Where the last global batch has fewer samples than there are ranks,
    some get an empty one, whose tensors have length 0: a loss summed over it is 0, and no rank waits for another.
    Parts of a batch may differ by one sample: who averages gradients over ranks weights by that, or sets `drop_last`.

    Args:
        dataset: its items are mappings with the same fields; see `Items`.
        batch_size: samples of all ranks together.
        shuffle: an order for each epoch, by the seed; else that of the data set.
        seed: at least 0; the same on all ranks.
        rank, ranks: this process among those that train together.
        workers: processes that read; 0 reads ahead in a thread. They stay from epoch to epoch, and are not forked from
            this process, whose threads may hold locks: a script needs `if __name__ == "__main__":`.
        window: blocks of the data set that are shuffled together and read at once; None shuffles everything, which
            suits local disks and large rows. On an object store, 16 small blocks mix well.
        read_ahead: batches that are read at once; default: those of a window, or without one up to 16 MiB, since many
            small requests take less time together. That many are held twice, and twice more a worker.
        drop_last: leave out a last batch that is not full.

    Raises:
        ValueError: a number out of its range.
    """

    def __init__(
        self,
        dataset: Items,
        batch_size: int,
        *,
        shuffle: bool = False,
        seed: int = 0,
        rank: int = 0,
        ranks: int = 1,
        workers: int = 0,
        window: int | None = None,
        read_ahead: int | None = None,
        drop_last: bool = False,
    ) -> None:
        for name, value, least in (
            ("batch_size", batch_size, ranks),
            ("seed", seed, 0),
            ("rank", rank, 0),
            ("ranks", ranks, rank + 1),
            ("workers", workers, 0),
            ("window", window, 1),
            ("read_ahead", read_ahead, 1),
        ):
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}; with rank {rank} of {ranks} it is at least {least}")
        self._dataset, self._rank, self._ranks, self._drop_last = dataset, rank, ranks, drop_last
        self._rows, self._batch_size, self._seed, self._shuffle = len(dataset), batch_size, seed, shuffle
        self._blocks = np.asarray(getattr(dataset, "blocks", np.arange(self._rows)))
        self._window = window if shuffle else None
        self._read_ahead = read_ahead or (None if self._window else self._default_ahead())
        self._epoch = self._done = 0
        self._chunks: list[list[Rows]] = []
        self._reader = BatchReader(dataset)
        self._workers = in_processes(self._reader, self._chunks, workers, seed) if workers else None

    @property
    def epoch(self) -> int:
        """Of the next batch, from 0."""
        return self._epoch

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return self._rows // self._batch_size if self._drop_last else -(-self._rows // self._batch_size)

    def __iter__(self) -> Iterator[Batch]:
        order, windows = self._order()
        batches = global_batches(order, self._batch_size, self._done, drop_last=self._drop_last)
        mine = [share(batch, self._rank, self._ranks) for batch in batches]
        starts = windows[self._done :: self._batch_size][: len(mine)]
        # In place: the processes' DataLoader has this very list.
        self._chunks[:] = self._grouped(mine, starts)
        read = in_thread(self._reader, self._chunks) if self._workers is None else self._workers
        for size, batch in zip(map(len, batches), (batch for chunk in read for batch in chunk), strict=True):
            self._done += size
            yield batch
        self._epoch, self._done = self._epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """Where the loader is, as plain numbers and text: the same on all ranks, and good for any number of them."""
        return {"epoch": self._epoch, "done": self._done} | self._identity

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another loader was, also with other ranks, workers or read-ahead.

        Raises:
            ValueError: the state is of another data set, seed, batch size, order or window.
        """
        differences = [
            f"{name} was {state.get(name)!r} and is {value!r}"
            for name, value in self._identity.items()
            if state.get(name) != value
        ]
        if differences:
            raise ValueError(
                f"the loader's state does not fit: {'; '.join(differences)}. Give it what it was saved with"
            )
        self._epoch, self._done = state["epoch"], state["done"]

    @cached_property
    def _identity(self) -> dict[str, Any]:
        """All that the order of samples and batches depends on; to hash a large data set takes a while."""
        return {
            "dataset": getattr(self._dataset, "fingerprint", None),
            "rows": self._rows,
            "batch_size": self._batch_size,
            "shuffle": self._shuffle,
            "seed": self._seed,
            "window": self._window,
        }

    def _order(self) -> tuple[Rows, Rows]:
        if not self._shuffle:
            return np.arange(self._rows), np.zeros(self._rows, np.int64)
        return epoch_order(self._blocks, self._seed, self._epoch, self._window)

    def _grouped(self, batches: list[Rows], windows: Rows) -> list[list[Rows]]:
        """Batches that are read at once: so many, or those that begin in the same window."""
        if self._read_ahead is None:
            pairs = groupby(zip(windows.tolist(), batches, strict=True), key=itemgetter(0))
            return [[batch for _, batch in group] for _, group in pairs]
        starts = range(0, len(batches), self._read_ahead)
        return [batches[at : at + self._read_ahead] for at in starts]

    def _default_ahead(self) -> int:
        batch_bytes = getattr(self._dataset, "row_bytes", _AHEAD_BYTES) * -(-self._batch_size // self._ranks)
        return min(_AHEAD_BATCHES, max(1, _AHEAD_BYTES // batch_bytes))
