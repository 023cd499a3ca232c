"""Jobs as users start them, in processes of their own that a test can hurt; and what a store holds, to compare."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil

from pipeline import FeatureStore, ledger, todo
from pipeline.job import Job
from pipeline.plan import make_plan
from pipeline.serial_runner import SerialRunner
from pipeline.store import read_manifest
from schemas.spec import ExtractSpec
from schemas.specfile import dump
from tests.tars import jpeg, make_tar

Contents = dict[tuple[str, str], tuple[str, bytes]]


def write_shards(folder: Path, shards: int = 4, images: int = 8) -> str:
    """Shards of small pictures with captions, every one different; returns their glob."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(shards):
        members = []
        for image in range(images):
            members.append((f"{image:03d}.jpg", jpeg(48, 64, seed=1000 * shard + image)))
            members.append((f"{image:03d}.txt", f"picture {image} of shard {shard}".encode()))
        make_tar(folder / f"{shard:02d}.tar", members)
    return f"{folder}/*.tar"


def spec_of(store: str, shards: str, *, block_bytes: int = 2**20, **cluster: object) -> ExtractSpec:
    """A job with two groups that share an encoding, in blocks of a few rows."""
    document = {
        "version": 1,
        "store": store,
        "input": {"shards": shards},
        "image_size": [64, 64],
        "backbone": {"batch_size": 4},
        "groups": [
            {"name": "plain", "prompt": "a photo", "t": 50, "taps": ["up-level1-upsampler-out"]},
            {"name": "caption", "prompt": "{caption}", "t": 50, "taps": ["up-level1-upsampler-out"]},
        ],
        "output": {"block_bytes": block_bytes},
        "cluster": {"device": "cpu", "actors": 2, **cluster},
    }
    return ExtractSpec.model_validate(document)


@contextmanager
def job(
    spec: ExtractSpec, folder: Path, *options: str, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """The job in a process group of its own, killed at the end if it still runs."""
    path = folder / "spec.yaml"
    path.write_text(dump(spec))
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.extract", str(path), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **(env or {})},
        start_new_session=True,
    )
    try:
        yield process
    finally:
        kill_all(process.pid)


def run(
    spec: ExtractSpec, folder: Path, *options: str, env: Mapping[str, str] | None = None
) -> tuple[int, str]:
    """The job to its end: exit code and output."""
    with job(spec, folder, *options, env=env) as process:
        output, _ = process.communicate(timeout=240)
        return process.returncode, output


def run_beside(spec: ExtractSpec) -> None:
    """The rest of a job, in this process and with no regard for leases: a second driver as rude as can be."""
    plan, manifest = make_plan(spec), read_manifest(spec.store)
    left = todo.unfinished(plan.shards, ledger.read_ledger(spec.store))
    SerialRunner(spec, manifest).run(Job(spec, manifest, left), lambda _: None)


def kill_all(pid: int) -> None:
    """Kill a process and everything below it."""
    try:
        parent = psutil.Process(pid)
    except psutil.NoSuchProcess:
        return
    for process in [*parent.children(recursive=True), parent]:
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue


def actors(driver: int) -> list[int]:
    """Process ids of the job's actors on this machine, those that have the backbone loaded or load it."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        if "".join(process.info["cmdline"] or []).startswith("ray::ExtractActor") and driver in _ancestors(
            process
        ):
            found.append(process.info["pid"])
    return found


def _ancestors(process: psutil.Process) -> list[int]:
    try:
        return [parent.pid for parent in process.parents()]
    except psutil.NoSuchProcess:
        return []


def wait_until(condition: Callable[[], object], what: str, timeout: float = 120) -> None:
    """Poll until a condition holds."""
    ends = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < ends, f"waited {timeout} s for {what}"
        time.sleep(0.02)


def markers(store: Path) -> list[Path]:
    """Markers of a local store."""
    return sorted((store / "markers").glob("*.json"))


def contents(url: str) -> Contents:
    """What readers see: by shard and key, the outcome and the bytes of every array."""
    store = FeatureStore(url)
    taps = list(store.taps)
    found: Contents = {}
    for line in store.index.to_pylist():
        maps = {} if line["row"] is None else store.read([line["row"]], taps)
        data = b"".join(maps[tap].tobytes() for tap in taps if maps)
        assert (line["shard"], line["key"]) not in found, "a sample is in the index twice"
        found[line["shard"], line["key"]] = (f"{line['status']} {line['reason']}", data)
    return found
