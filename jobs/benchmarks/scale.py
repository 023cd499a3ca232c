"""How a job's bookkeeping grows: plan and commit 100,000 shards with a stub for all that workers compute.

`python -m jobs.benchmarks.scale` (about an hour; `--shards 1000` for a look). Everything but the workers is the job's
own: listing, plan, Ray, schedule, claims, markers, compactions. A stub worker commits a shard's index at once, with as
many records as a real one, and writes no features: those cost every worker the same however large the store is.
Each step runs in a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import tarfile
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from jobs.benchmarks.simulated import SimulatedRunner, TimedJob
from pipeline import ledger, status, todo
from pipeline.batches import Assignment
from pipeline.plan import make_plan
from pipeline.reader import FeatureStore
from pipeline.store import open_store, read_manifest
from schemas.spec import ExtractSpec

_LINKS = 30_000  # to one file: file systems allow some 65,000
_WHOLE_INDEX_ROWS = 10**7  # of which the whole index still fits a small machine's memory

Figures = dict[str, float]


def main(
    shards: Annotated[int, typer.Option(help="Input tars.")] = 100_000,
    rows: Annotated[int, typer.Option(help="Samples in each.")] = 1000,
    folder: Annotated[Path | None, typer.Option(help="Where to work: 100 bytes a row.")] = None,
    store: Annotated[str | None, typer.Option(help="The store's URL; default: in the folder.")] = None,
    out: Annotated[Path, typer.Option(help="Where to write the results.")] = Path("scale.json"),
) -> None:
    """Print and keep seconds and megabytes of each step."""
    console = Console()
    found: dict[str, Figures] = {}
    with tempfile.TemporaryDirectory(dir=folder or Path.cwd(), prefix=".scale-") as place:
        inputs = make_shards(Path(place) / "shards", shards, rows)
        spec = make_spec(inputs, store or f"{place}/store")
        for step in (commit, resume, look, open_rows, open_index):
            if step is open_index and shards * rows > _WHOLE_INDEX_ROWS:
                continue
            found[step.__name__] = alone(step, spec)
            result = {"shards": shards, "rows": shards * rows, "cpus": os.cpu_count(), "steps": found}
            out.write_text(json.dumps(result, indent=1) + "\n")
        show(console, result)
        console.print(f"results: {out}; removing {place}, which takes minutes where there are many shards")


def make_shards(folder: Path, count: int, rows: int) -> str:
    """Tars of empty images, most of them hard links to a few; the pattern that names them."""
    folder.mkdir(parents=True)
    for number in range(count):
        path = folder / f"{number:06d}.tar"
        if number % _LINKS:
            os.link(folder / f"{number - number % _LINKS:06d}.tar", path)
            continue
        with tarfile.open(path, "w") as tar:
            for place in range(rows):
                tar.addfile(tarfile.TarInfo(f"{place:06d}.jpg"))
    return f"{folder}/*.tar"


def make_spec(shards: str, store: str) -> ExtractSpec:
    """A job with one small tap of the embedded backbone."""
    return ExtractSpec.model_validate(
        {
            "version": 1,
            "store": store,
            "input": {"shards": shards},
            "image_size": [64, 64],
            "groups": [
                {"name": "plain", "prompt": "a photo", "t": 50, "taps": ["mid-vit-block0-self-q"]},
            ],
            "cluster": {"device": "cpu", "cpus_per_actor": 1},
        }
    )


def alone(step: Callable[[ExtractSpec], Figures], spec: ExtractSpec) -> Figures:
    """A step's figures, with the peak memory of a new process that does nothing else."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_measured, step, spec).result()


def _measured(step: Callable[[ExtractSpec], Figures], spec: ExtractSpec) -> Figures:
    before = _peak_mb()
    figures = step(spec)
    return {**figures, "MB at first": before, "MB at most": _peak_mb()}


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def commit(spec: ExtractSpec) -> Figures:
    """Plan and run the job; seconds of the driver by what it did."""
    began = time.perf_counter()
    plan = make_plan(spec)
    planned = time.perf_counter()
    runner = SimulatedRunner(spec, plan.manifest)
    manifest = open_store(spec.store, plan.manifest)
    job = TimedJob(spec, manifest, [Assignment(shard) for shard in plan.shards])
    cpu, started = time.process_time(), time.perf_counter()
    runner.run(job, lambda counters: None)
    ended, cpu = time.perf_counter(), time.process_time() - cpu
    job.compact(job.finish().fresh)
    runner.close()
    assert job.schedule.done == len(plan.shards)
    shards = len(plan.shards)
    return {
        "plan s": planned - began,
        "run s": ended - started,
        "shards a second": shards / (ended - started),
        "driver's CPU ms a shard": 1000 * cpu / shards,
        "handing out ms a shard": 1000 * job.seconds["next_task"] / shards,
        "taking in ms a shard": 1000 * job.seconds["succeeded"] / shards,
        "compaction s": job.seconds["compact"],
        "longest compaction s": job.longest_compaction,
        "end s": time.perf_counter() - ended,
    }


def resume(spec: ExtractSpec) -> Figures:
    """What a job does before it goes on: list the input, read what is committed, compare. Where work is left it reads
    what is committed once more, with the lease in its hands, and lists the claims."""
    began = time.perf_counter()
    plan = make_plan(spec)
    planned = time.perf_counter()
    read_manifest(spec.store)
    committed = ledger.read_ledger(spec.store)
    read = time.perf_counter()
    todo.check_unchanged(plan.shards, committed)
    assert not todo.unfinished(plan.shards, committed)
    return {"plan s": planned - began, "ledger s": read - planned, "compare s": time.perf_counter() - read}


def look(spec: ExtractSpec) -> Figures:
    """`gatehouse status`."""
    began = time.perf_counter()
    seen = status.look(spec.store)
    assert seen.rows.left == 0
    return {"status s": time.perf_counter() - began}


def open_rows(spec: ExtractSpec) -> Figures:
    """What a training run does first: open the store, and list the rows that are good."""
    began = time.perf_counter()
    store = FeatureStore(spec.store)
    opened = len(store.ledger.shards)
    read = time.perf_counter()
    rows = store.rows("plain")
    assert opened and len(rows)
    return {"ledger s": read - began, "rows s": time.perf_counter() - read, "rows": float(len(rows))}


def open_index(spec: ExtractSpec) -> Figures:
    """All columns of the index."""
    began = time.perf_counter()
    index = FeatureStore(spec.store).index
    return {"index s": time.perf_counter() - began, "index MB": index.nbytes / 2**20}


def show(console: Console, result: dict[str, Any]) -> None:
    """A line a figure."""
    table = Table("step", "figure", "value", title=f"{result['shards']:,} shards, {result['rows']:,} rows")
    for step, figures in result["steps"].items():
        for name, value in figures.items():
            table.add_row(step, name, f"{value:,.3g}" if value < 1000 else f"{value:,.0f}")
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
