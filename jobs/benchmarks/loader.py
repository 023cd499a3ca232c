"""An epoch in shuffled order through FeatureLoader, beside a plain DataLoader over one .npy file an image.

Both give batches of the same taps at their own resolution, and shuffle all rows; beside that, FeatureLoader in windows
where rows are small. Caches are warm and worker processes started on both sides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch.utils.data import DataLoader

from jobs.benchmarks.figures import Figure, Line, Measurement, in_turns, rate
from jobs.benchmarks.read import NpyFiles
from jobs.benchmarks.workbench import Workbench
from pipeline import FeatureDataset, FeatureLoader
from pipeline.read_ahead import worker_context

_BATCH = 8
_WORKERS = (0, 2)
_WINDOW = 4


def measure(bench: Workbench) -> Measurement:
    """Samples a second; local, and S3 where there is one."""
    found = Measurement()
    sizes = {
        "0.1 MB a row": (bench.features, bench.scale.rows),
        "11 MB a row": (bench.big_features, bench.scale.big_rows),
    }
    for what, (features, rows) in sizes.items():
        for remote in (False, True) if bench.s3 else (False,):
            url = bench.new_url(s3=remote)
            bench.store(url, features, rows)
            files = NpyFiles(bench.new_url(s3=remote), features)
            files.write(rows)
            where = f"{'S3' if remote else 'local'}, {what}"
            for workers in _WORKERS:
                _measure_one(bench, found, f"{where}, {workers} workers", FeatureDataset(url), files, workers)
    return found


def _measure_one(
    bench: Workbench, found: Measurement, where: str, dataset: FeatureDataset, files: NpyFiles, workers: int
) -> None:
    rows = len(dataset)
    loops = {
        "bare": _epoch(_plain(files, workers)),
        "all shuffled": _epoch(FeatureLoader(dataset, _BATCH, shuffle=True, workers=workers)),
    }
    if len(set(dataset.blocks.tolist())) < rows:
        windowed = FeatureLoader(dataset, _BATCH, shuffle=True, workers=workers, window=_WINDOW)
        loops[f"windows of {_WINDOW} blocks"] = _epoch(windowed)
    for loop in loops.values():
        loop()  # starts processes, opens connections
    values = in_turns(bench.scale.repeats, **{name: rate(rows, loop) for name, loop in loops.items()})
    baseline = Figure("DataLoader, a .npy an image", values.pop("bare"))
    for name, ours in values.items():
        figure = Figure("FeatureLoader", ours)
        found.lines.append(
            Line(f"{where}: {name}, batches of {_BATCH}", "rows/s", "higher", figure, baseline)
        )


def _plain(files: NpyFiles, workers: int) -> DataLoader[Any]:
    processes: dict[str, Any] = (
        {"persistent_workers": True, "multiprocessing_context": worker_context()} if workers else {}
    )
    return DataLoader(files, batch_size=_BATCH, shuffle=True, num_workers=workers, **processes)


def _epoch(batches: Iterable[object]) -> Callable[[], None]:
    def loop() -> None:
        for _ in batches:
            pass

    return loop
