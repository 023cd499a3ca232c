"""A caption job on workers that fail: shards are tried again, and the rest goes on."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from pipeline import caption_runner
from pipeline.caption_job import CaptionJob, SerialCaptions
from pipeline.caption_runner import RayCaptions
from pipeline.caption_shards import CaptionWorker, Outcome
from pipeline.captioner import locate, make_manifest
from pipeline.captions import Captions, open_captions
from pipeline.schedule import JobFailed
from pipeline.shards import Shard, list_shards
from schemas.captions import CaptionsManifest, CaptionSpec
from tests import captioners
from tests.tars import jpeg, make_tar


@pytest.fixture
def spec(tmp_path: Path) -> CaptionSpec:
    (tmp_path / "shards").mkdir()
    for shard in range(4):
        members = [(f"{n}.jpg", jpeg(40, 60, 10 * shard + n)) for n in range(5)]
        make_tar(tmp_path / "shards" / f"{shard}.tar", members)
    document = {
        "version": 1,
        "captions": f"{tmp_path}/out",
        "input": {"shards": f"{tmp_path}/shards/*.tar"},
        "model": {"source": captioners.git(tmp_path / "git"), "batch_size": 2},
        "max_new_tokens": 6,
        "cluster": {"device": "cpu", "actors": 2},
    }
    return CaptionSpec.model_validate(document)


def begin(spec: CaptionSpec) -> tuple[CaptionsManifest, CaptionJob]:
    manifest = make_manifest(spec, locate(spec))
    open_captions(spec.captions, manifest)
    return manifest, CaptionJob(list_shards(spec.input))


def ignore(job: CaptionJob, progress: dict[str, float]) -> None:
    """No report."""


def test_a_shard_that_cannot_be_read_does_not_stop_the_others(
    spec: CaptionSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: Counter[str] = Counter()
    run = CaptionWorker.run

    def flaky(self: CaptionWorker, shard: Shard) -> Outcome:
        tries[shard.id] += 1
        if shard.id == "1.tar" or (shard.id == "2.tar" and tries[shard.id] < 3):
            raise OSError("connection reset")
        return run(self, shard)

    monkeypatch.setattr(CaptionWorker, "run", flaky)
    manifest, job = begin(spec)
    SerialCaptions(spec, manifest).run(job, ignore)
    assert tries == {"0.tar": 1, "1.tar": 3, "2.tar": 3, "3.tar": 1}
    assert job.schedule.set_aside == ["1.tar"] and job.schedule.done == 3
    assert job.counts == {"ok": 15}
    assert Captions(spec.captions).has(list_shards(spec.input)) == [True, False, True, True]


def test_an_outage_ends_the_job(spec: CaptionSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    def down(self: CaptionWorker, shard: Shard) -> Outcome:
        raise OSError("no route to host")

    monkeypatch.setattr(CaptionWorker, "run", down)
    manifest, job = begin(spec)
    with pytest.raises(JobFailed, match="the first 3 shards failed 3 times each and none succeeded"):
        SerialCaptions(spec, manifest).run(job, ignore)


def test_stopping_hands_out_nothing_more(spec: CaptionSpec) -> None:
    manifest, job = begin(spec)

    def stop(job: CaptionJob, progress: dict[str, float]) -> None:
        job.stopping.set()

    SerialCaptions(spec, manifest).run(job, stop)
    assert (job.schedule.done, job.schedule.remaining) == (1, 3)


@pytest.mark.ray
def test_a_killed_actor_is_replaced_and_its_shard_done_again(
    spec: CaptionSpec, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By the same captions as ever; then a job without work to do, on the same Ray, ends at once."""
    monkeypatch.setattr(caption_runner, "_TICK_S", 0.05)
    manifest, job = begin(spec)
    quiet = spec.model_copy(update={"captions": f"{spec.captions}-quiet"})
    SerialCaptions(quiet, begin(quiet)[0]).run(CaptionJob(list_shards(spec.input)), ignore)
    runner = RayCaptions(spec, manifest)
    try:
        killed = threading.Event()

        def kill_one(job: CaptionJob, progress: dict[str, float]) -> None:
            if not killed.is_set() and (found := _actors()):
                os.kill(found[0], signal.SIGKILL)
                killed.set()

        preview = runner.preview(list_shards(spec.input)[0])
        runner.run(job, kill_one)
        runner.run(CaptionJob([]), ignore)
    finally:
        runner.close()
    assert killed.is_set() and "an actor died" in caplog.text
    first = Captions(quiet.captions).of("0.tar")
    assert [(one.key, one.caption) for one in preview.records] == list(first.items())[:2]
    assert job.schedule.done == 4 and not job.schedule.set_aside
    for shard in list_shards(spec.input):
        assert Captions(spec.captions).of(shard.id) == Captions(quiet.captions).of(shard.id)


def _actors() -> list[int]:
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "".join(process.cmdline()).startswith("ray::CaptionActor"):
                found.append(process.pid)
        except psutil.NoSuchProcess:
            continue
    time.sleep(0.01)
    return found
