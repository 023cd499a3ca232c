"""Images/s of the job beside the bare forward passes it makes, and where the rest goes.

First a `Worker` in this process, with all its threads and the commit, whose one computing thread has one core; then
the whole job through Ray, as many actors as said, beside as many processes with the bare loop. On a CPU the threads
that decode and compress compete with the forward pass for cores, so CPU seconds are told too.
"""

from __future__ import annotations

from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from time import monotonic, perf_counter, process_time
from typing import Any

import numpy as np
import psutil
import ray

from jobs.benchmarks.bare import in_processes, passes
from jobs.benchmarks.figures import Figure, Line, Measurement, in_turns
from jobs.benchmarks.workbench import CAPTION, PLAIN, REQUESTS, Workbench, engine_of, loaded, loaded_backbone
from pipeline import ledger
from pipeline.batches import Assignment
from pipeline.features import Engine
from pipeline.job import Job
from pipeline.plan import Plan, make_plan
from pipeline.ray_runner import RayRunner
from pipeline.store import open_store
from pipeline.worker import Worker
from schemas.spec import ExtractSpec

_UNIT = "images/s"
_STEADY = 0.4, 0.9
"""Shares of the images done between which a job is neither starting up nor running out of work."""
_FEWEST_POINTS = 3


def measure(bench: Workbench) -> Measurement:
    """Worker with a light and a heavier forward pass, then the job through Ray on one core and on all."""
    found = Measurement()
    for what, groups in {"one group": [PLAIN], "two groups": [PLAIN, CAPTION]}.items():
        _in_worker(bench, found, f"worker, {what}", groups)
    for actors in bench.scale.actors:
        _through_ray(bench, found, actors)
    return found


def _in_worker(bench: Workbench, found: Measurement, what: str, groups: list[dict[str, Any]]) -> None:
    spec = bench.spec(bench.scale.worker_images, groups)
    plan = make_plan(spec)
    engine = engine_of(plan)
    backbone = loaded_backbone(plan)
    loop = passes(backbone, plan, loaded(plan))
    passes(backbone, plan, loaded(plan)[:2])()  # warm up
    costs: dict[str, list[float]] = defaultdict(list)

    def job() -> float:
        copy = spec.model_copy(update={"store": bench.new_url()})
        started, cpu = perf_counter(), process_time()
        progress = _work(copy, plan, engine)
        seconds = perf_counter() - started
        images = progress.pop("images")
        _keep(costs, "job", {"wall_s": seconds, "cpu_s": process_time() - cpu, **progress}, images)
        return images / seconds

    def bare() -> float:
        started, cpu = perf_counter(), process_time()
        loop()
        seconds = perf_counter() - started
        _keep(costs, "bare", {"wall_s": seconds, "cpu_s": process_time() - cpu}, plan.rows)
        return plan.rows / seconds

    values = in_turns(bench.scale.worker_repeats, job=job, bare=bare)
    names = {"job": "read, compute, store, commit", "bare": "bare passes"}
    found.lines.append(_line(what, names, values))
    found.facts[what] = {"images": plan.rows, "seconds_per_image": _medians(costs)}


def _work(spec: ExtractSpec, plan: Plan, engine: Engine) -> dict[str, float]:
    """All shards through one worker; its counters."""
    manifest = open_store(spec.store, plan.manifest)
    job = Job(spec, manifest, [Assignment(shard) for shard in plan.shards])
    worker = Worker(spec, manifest, engine, device="cpu", requests=REQUESTS)
    futures = []
    while task := job.next_task(idle=True):
        futures.append(worker.submit(task))
    for future in futures:
        future.result()
    return dict(worker.progress)


def _through_ray(bench: Workbench, found: Measurement, actors: int) -> None:
    images = bench.scale.images_per_actor * actors
    spec = bench.spec(images, actors=actors)
    costs: dict[str, list[float]] = defaultdict(list)
    with_start: list[float] = []

    def job() -> float:
        result = _in_new_process(spec.model_copy(update={"store": bench.new_url()}))
        with_start.append(images / result.pop("whole_s"))
        steady: float = result.pop("images_per_s")
        _keep(costs, "job", result, 1)
        return steady

    def bare() -> float:
        result = in_processes(spec, actors)
        _keep(costs, "bare", {"cpu_s": result["cpu_s_per_image"]}, 1)
        return result["images_per_s"]

    values = in_turns(bench.scale.job_repeats, job=job, bare=bare)
    what = f"job on Ray, {actors} actor{'s' if actors > 1 else ''} of one core"
    names = {"job": "the job", "bare": f"bare passes, {actors} process{'es' if actors > 1 else ''}"}
    found.lines.append(_line(f"{what}, without start-up", names, values))
    found.lines.append(_line(f"{what}, with start-up", names, {"job": with_start, "bare": values["bare"]}))
    found.facts[what] = {"images": images, "seconds_per_image": _medians(costs)}


def _in_new_process(spec: ExtractSpec) -> dict[str, float]:
    """A whole job in a fresh Python; `whole_s` counts from its start to its end, imports included."""
    started = perf_counter()
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        result = pool.submit(_whole_job, spec).result()
    return {**result, "whole_s": perf_counter() - started}


def _whole_job(spec: ExtractSpec) -> dict[str, float]:
    """What `jobs.extract` does for a new store, with a trace of its progress."""
    plan = make_plan(spec)
    runner = RayRunner(spec, plan.manifest)
    trace: list[tuple[float, dict[str, float]]] = []
    try:
        runner.probe(plan.shards)
        job = Job(spec, open_store(spec.store, plan.manifest), [Assignment(shard) for shard in plan.shards])
        runner.run(job, lambda progress: trace.append((monotonic(), {**progress, "cpu_s": _actors_cpu_s()})))
        images = job.counts["ok"]
        assert images == job.counts.total(), f"not all images are good: {job.counts}"
    finally:
        runner.close()
        ray.shutdown()
    ledger.compact(spec.store, ledger.read_ledger(spec.store).fresh)
    return steady(trace, images)


def steady(trace: list[tuple[float, dict[str, float]]], rows: int) -> dict[str, float]:
    """Rate, and seconds an image by stage, of a job that is neither starting up nor running out of work.

    Args:
        trace: (time, counters) again and again; of the counters, `images` and all `*_s` are looked at.
        rows: of the whole job.

    Raises:
        ValueError: a job that was over too soon.
    """
    points = [
        (at, now) for at, now in trace if _STEADY[0] * rows <= now.get("images", 0) <= _STEADY[1] * rows
    ]
    if len(points) < _FEWEST_POINTS:
        raise ValueError(f"the job's {rows} images took too little time to tell its rate; use more images")
    images = [now["images"] for _, now in points]
    # A fitted line, because counters arrive up to half a second late.
    slope = np.polyfit([at - points[0][0] for at, _ in points], images, 1)[0]
    first, last = points[0][1], points[-1][1]
    stages = [name for name in last if name.endswith("_s")]
    seconds = {name: (last[name] - first.get(name, 0.0)) / (images[-1] - images[0]) for name in stages}
    return {"images_per_s": float(slope), **seconds}


def _actors_cpu_s() -> float:
    """CPU seconds of all actors so far."""
    total = 0.0
    for process in psutil.Process().children(recursive=True):
        try:
            if "ExtractActor" in "".join(process.cmdline()):
                times = process.cpu_times()
                total += times.user + times.system
        except psutil.NoSuchProcess:
            continue
    return total


def _line(what: str, names: dict[str, str], values: dict[str, list[float]]) -> Line:
    ours, baseline = (Figure(names[name], values[name]) for name in ("job", "bare"))
    return Line(what, _UNIT, "higher", ours, baseline)


def _keep(costs: dict[str, list[float]], who: str, seconds: dict[str, float], images: float) -> None:
    for name, value in seconds.items():
        if name.endswith("_s"):
            costs[f"{who} {name}"].append(value / images)


def _medians(costs: dict[str, list[float]]) -> dict[str, float]:
    return {name: Figure(name, values).median for name, values in costs.items()}
