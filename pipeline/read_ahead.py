"""Batches read ahead, by a thread or by processes, in the order asked for."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from multiprocessing.context import BaseContext
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from pipeline.order import Rows

Batch = dict[str, Any]
Chunk = Sequence[Rows]
"""Places of the items of several batches, which are read at once."""


class Items(Protocol):
    """What a loader takes: any map-style data set that reads many items at once.

    Attributes that are used where there are any: `blocks`, int64 [n], which items lie together (`pipeline.order`);
    `row_bytes`, what an item takes in memory; and `fingerprint`, what the items are.
    """

    def __len__(self) -> int: ...

    def __getitems__(self, items: Sequence[int], /) -> list[dict[str, Any]]: ...


class BatchReader(Dataset[list[Batch]]):
    """Reads several batches at once."""

    def __init__(self, dataset: Items) -> None:
        self._dataset = dataset

    def __getitem__(self, chunk: Sequence[Rows]) -> list[Batch]:
        """A batch for each array of places; one without places is empty, with fields and shapes as the others."""
        items = iter(self._dataset.__getitems__(np.concatenate(chunk).tolist()))
        return [self._collate([next(items) for _ in places]) for places in chunk]

    def _collate(self, items: list[dict[str, Any]]) -> Batch:
        if not items:
            one = collate(self._dataset.__getitems__([0]))
            return {name: values[:0] for name, values in one.items()}
        return collate(items)


def collate(items: Sequence[Mapping[str, Any]]) -> Batch:
    """Items with the same fields as one batch: tensors stacked, [B, ...], anything else in lists."""
    columns = {name: [item[name] for item in items] for name in items[0]}
    return {
        name: _stacked(values) if isinstance(values[0], Tensor) else values
        for name, values in columns.items()
    }


def _stacked(values: list[Tensor]) -> Tensor:
    """[B, ...]; not copied where the tensors lie one behind the other in what was read together."""
    first = values[0]
    if all(
        one.is_contiguous()
        and one.shape == first.shape
        and one.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        and one.storage_offset() == first.storage_offset() + place * first.numel()
        for place, one in enumerate(values)
    ):
        return first.as_strided((len(values), *first.shape), (first.numel(), *first.stride()))
    # In a worker, torch stacks into memory that both processes share.
    stacked: Tensor = default_collate(values)
    return stacked


def in_thread(reader: BatchReader, chunks: Sequence[Chunk]) -> Iterator[list[Batch]]:
    """The batches of each chunk; while one chunk is used, the next is read."""
    pool = ThreadPoolExecutor(1, "read-ahead")
    coming: Future[list[Batch]] | None = None
    try:
        for chunk in chunks:
            after = pool.submit(reader.__getitem__, chunk)
            if coming is not None:
                yield coming.result()
            coming = after
        if coming is not None:
            yield coming.result()
    finally:
        pool.shutdown(cancel_futures=True)


def in_processes(
    reader: BatchReader, chunks: Sequence[Chunk], workers: int, seed: int
) -> DataLoader[list[Batch]]:
    """The same, each time that it is iterated, of what `chunks` holds by then; the processes stay.

    Each reads every so manieth chunk, two ahead.
    """
    return DataLoader(
        reader,
        batch_size=None,
        sampler=chunks,
        num_workers=workers,
        persistent_workers=True,
        multiprocessing_context=worker_context(),
        collate_fn=_as_it_is,
        worker_init_fn=partial(_adopt, dict(os.environ)),
        # Else a number is drawn from torch's global state, and workers change what a training draws next.
        generator=torch.Generator().manual_seed(seed),
    )


def worker_context() -> BaseContext:
    """How workers start: forked by a server that has imported what they need, which takes seconds, once for all."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pipeline.read_ahead", "pipeline.dataset"])
    return context


def _adopt(environment: Mapping[str, str], worker: int) -> None:
    """The server that forks workers has the environment of its own start, without credentials that came later."""
    os.environ.update(environment)


def _as_it_is(chunk: list[Batch]) -> list[Batch]:
    return chunk
