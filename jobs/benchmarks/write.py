"""Writing blocks as a job does (encode, upload, check) beside bare writes of the very same bytes."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from jobs.benchmarks import s3
from jobs.benchmarks.figures import Figure, Line, Measurement, in_turns, rate
from jobs.benchmarks.workbench import REQUESTS, Workbench
from pipeline import arrays, storage
from pipeline.blocks import Block

Objects = list[bytes]


def measure(bench: Workbench) -> Measurement:
    """Blocks of the embedded backbone, and as large as SD 1.5's at 512 px; local, and S3 if there is one."""
    found = Measurement()
    for what, features in {"0.1 MB a row": bench.features, "11 MB a row": bench.big_features}.items():
        manifest = bench.manifest(features)
        rows = manifest.rows_per_block
        block = Block(0, {name: values[:rows] for name, values in features.items()})
        encoded = [
            arrays.encode(layout, manifest, block.arrays[layout.group, layout.tap])
            for layout in manifest.arrays
        ]
        objects = [data for data in encoded if data is not None]
        stored, raw = sum(map(len, objects)), sum(values.nbytes for values in block.arrays.values())
        found.facts[what] = {"objects": len(objects), "stored_bytes": stored, "raw_bytes": raw}
        for remote in (False, True) if bench.s3 else (False,):
            with ThreadPoolExecutor(REQUESTS) as pool:
                ours = _attempt(bench, block, pool, remote)
                puts = _puts(bench, objects, pool, remote)
                bare = _boto3(bench, objects, pool) if remote else _files(bench, objects, pool)
                work = {"ours": ours, "puts": puts, "bare": bare}
                timed = {name: rate(stored / 1e6, one) for name, one in work.items()}
                values = in_turns(bench.scale.repeats, **timed)
            where = "S3" if remote else "local"
            baseline = Figure("boto3 put_object" if remote else "write + fsync", values["bare"])
            for name, text in {"ours": "encode + put + check", "puts": "put + check"}.items():
                line = Line(
                    f"{where}, {what}: {text}", "MB/s", "higher", Figure(text, values[name]), baseline
                )
                found.lines.append(line)
    return found


def _attempt(bench: Workbench, block: Block, pool: ThreadPoolExecutor, remote: bool) -> Callable[[], None]:
    """Rows are claimed and arrays grown beforehand: a job does that once for many blocks."""
    manifest = bench.manifest(block.arrays)
    attempt = bench.attempt(bench.new_url(s3=remote), manifest, 0, pool)
    attempt.write(block)
    return lambda: attempt.write(block)


def _puts(bench: Workbench, objects: Objects, pool: ThreadPoolExecutor, remote: bool) -> Callable[[], None]:
    """Without the encoding."""
    fs, root = storage.open_fs(bench.new_url(s3=remote))

    def write(item: tuple[int, bytes]) -> None:
        storage.put(fs, f"{root}/{item[0]}", item[1])

    return lambda: _all(pool, write, objects)


def _boto3(bench: Workbench, objects: Objects, pool: ThreadPoolExecutor) -> Callable[[], None]:
    client = s3.client(REQUESTS)
    bucket, _, prefix = bench.new_url(s3=True).removeprefix("s3://").partition("/")

    def write(item: tuple[int, bytes]) -> None:
        client.put_object(Bucket=bucket, Key=f"{prefix}/{item[0]}", Body=item[1])

    return lambda: _all(pool, write, objects)


def _files(bench: Workbench, objects: Objects, pool: ThreadPoolExecutor) -> Callable[[], None]:
    folder = Path(bench.new_url())
    folder.mkdir()

    def write(item: tuple[int, bytes]) -> None:
        with open(folder / str(item[0]), "wb") as file:
            file.write(item[1])
            file.flush()
            os.fsync(file.fileno())

    return lambda: _all(pool, write, objects)


def _all(pool: ThreadPoolExecutor, write: Callable[[tuple[int, bytes]], Any], objects: Objects) -> None:
    for _ in pool.map(write, enumerate(objects)):
        pass
