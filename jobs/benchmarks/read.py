"""Reading features beside np.load of one .npy file an image, which holds the same taps at their own resolution.

Caches are warm on both sides. Both give the same: {tap: [n, C, h, w]} in the stored dtype.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from jobs.benchmarks.figures import Figure, Line, Measurement, in_turns, rate
from jobs.benchmarks.workbench import Workbench
from pipeline import FeatureDataset, FeatureStore, storage
from pipeline.features import GroupTap

_BATCH = 8
Maps = dict[str, NDArray[Any]]
Features = dict[GroupTap, NDArray[np.generic]]


def measure(bench: Workbench) -> Measurement:
    """Random rows in batches and one by one, and a sequential pass; local, and S3 where there is one."""
    found = Measurement()
    sizes = {
        "0.1 MB a row": (bench.features, bench.scale.rows, bench.scale.reads),
        "11 MB a row": (bench.big_features, bench.scale.big_rows, bench.scale.big_rows),
    }
    for what, (features, rows, reads) in sizes.items():
        for remote in (False, True) if bench.s3 else (False,):
            url = bench.new_url(s3=remote)
            bench.store(url, features, rows)
            files = NpyFiles(bench.new_url(s3=remote), features)
            files.write(rows)
            where = f"{'S3' if remote else 'local'}, {what}"
            _measure_one(bench, found, where, FeatureStore(url), files, rows, reads)
    return found


class NpyFiles(Dataset[dict[str, torch.Tensor]]):
    """One file an image on a local disk or S3: all taps flat, one behind the other."""

    def __init__(self, url: str, features: Features) -> None:
        self._features = features
        self._fs, self._root = storage.open_fs(url)
        self._local = "file" in self._fs.protocol
        self._shapes = {f"{group}/{tap}": values.shape[1:] for (group, tap), values in features.items()}
        self._rows = 0

    def write(self, rows: int) -> None:
        """Make the files of so many rows."""
        self._rows, count = rows, len(next(iter(self._features.values())))
        data: dict[str, bytes] = {}
        for row in range(rows):
            sink = io.BytesIO()
            np.save(sink, np.concatenate([values[row % count].ravel() for values in self._features.values()]))
            data[self._path(row)] = sink.getvalue()
        if self._local:
            Path(self._root).mkdir()
        self._fs.pipe(data)

    def read(self, rows: Sequence[int]) -> Maps:
        """As `FeatureStore.read`; from S3 all files of a batch are fetched at once."""
        if self._local:
            flat = [np.load(self._path(row)) for row in rows]
        else:
            data = self._fs.cat([self._path(row) for row in rows])
            flat = [np.load(io.BytesIO(data[self._path(row)])) for row in rows]
        parts = [self._split(values) for values in flat]
        return {name: np.stack([part[name] for part in parts]) for name in self._shapes}

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: Sequence[int]) -> list[dict[str, torch.Tensor]]:
        maps = self.read(rows)
        return [{name: torch.from_numpy(v[place]) for name, v in maps.items()} for place in range(len(rows))]

    def _path(self, row: int) -> str:
        return f"{self._root}/{row:08d}.npy"

    def _split(self, flat: NDArray[Any]) -> Maps:
        sizes = [int(np.prod(shape)) for shape in self._shapes.values()]
        parts = np.split(flat, np.cumsum(sizes)[:-1])
        pairs = zip(self._shapes.items(), parts, strict=True)
        return {name: part.reshape(shape) for (name, shape), part in pairs}


def _measure_one(
    bench: Workbench,
    found: Measurement,
    where: str,
    store: FeatureStore,
    files: NpyFiles,
    rows: int,
    reads: int,
) -> None:
    taps = list(store.taps)
    _check_equal(store.read(store.rows()[[-1, 0]], taps), files.read([rows - 1, 0]))
    random = np.random.Generator(np.random.Philox(1))
    some = random.integers(rows, size=reads)

    def batches(read: Callable[[Any], Maps], size: int) -> Callable[[], None]:
        return lambda: _consume(read(some[start : start + size]) for start in range(0, reads, size))

    def ours(picked: NDArray[np.int64]) -> Maps:
        return store.read(store_rows[picked], taps)

    store_rows = store.rows()
    dataset = FeatureDataset(store.url)
    work = {
        f"random rows, batches of {_BATCH}": (reads, batches(ours, _BATCH), batches(files.read, _BATCH)),
        "random rows, one by one": (reads, batches(ours, 1), batches(files.read, 1)),
        f"sequential pass, DataLoader, batches of {_BATCH}": (rows, _loop(dataset), _loop(files)),
    }
    for what, (amount, one, other) in work.items():
        values = in_turns(bench.scale.repeats, ours=rate(amount, one), bare=rate(amount, other))
        figures = Figure("FeatureStore", values["ours"]), Figure("np.load, a file an image", values["bare"])
        found.lines.append(Line(f"{where}: {what}", "rows/s", "higher", *figures))


def _loop(dataset: Dataset[Any]) -> Callable[[], None]:
    return lambda: _consume(DataLoader(dataset, batch_size=_BATCH))


def _consume(items: Iterable[object]) -> None:
    for _ in items:
        pass


def _check_equal(ours: Maps, theirs: Maps) -> None:
    for name, values in theirs.items():
        assert np.array_equal(ours[name], values), f"{name}: the two sides read different values"
