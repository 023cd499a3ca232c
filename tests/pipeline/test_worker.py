"""Three stages in threads: they overlap, and what goes wrong in one of them belongs to its shard alone."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest

from pipeline import worker as workers
from pipeline.attempt import Attempt, Outcome
from pipeline.batch import Batch
from pipeline.batches import Assignment, LoadedBatch, Record, ShardEnd
from pipeline.features import Features
from pipeline.meter import Meter
from pipeline.shards import BadShard
from pipeline.worker import Task, Worker
from tests.attempts import SHAPE, make_store, manifest, shard
from tests.faults.harness import spec_of
from tests.pictures import of_pictures

BATCHES = 6


class Engine:
    """Ones for every sample, or whatever a test does in its place."""

    def __init__(self) -> None:
        self.before = lambda batch: None

    def run(self, batch: Batch) -> Features:
        self.before(batch)
        names = ("plain", "fine")
        return Features(
            {(name, "tap"): np.ones((4, *SHAPE), np.float16) for name in names},
            {(name, "tap"): np.ones((4, SHAPE[0]), np.float32) for name in names},
            {name: [None] * 4 for name in names},
        )


def read(assignment: Assignment, *_: object) -> Iterator[LoadedBatch | ShardEnd]:
    """Six batches of four samples; "unreadable.tar" breaks in the middle."""
    name = assignment.shard.id
    for number in range(BATCHES):
        if name == "unreadable.tar" and number == 3:
            raise OSError("connection reset")
        keys = [f"{4 * number + slot}" for slot in range(4)]
        batch = of_pictures([(name, key) for key in keys], np.zeros((4, 3, 8, 8), np.uint8))
        yield LoadedBatch(batch, [Record(int(key), key) for key in keys])
    yield ShardEnd(4 * BATCHES, True)


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def worker(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Worker:
    monkeypatch.setattr(workers, "read_batches", read)
    spec = spec_of(str(tmp_path / "store"), "unused")
    make_store(spec.store, manifest())
    return Worker(spec, manifest(), engine, device="test", requests=2)  # type: ignore[arg-type]


def submit(worker: Worker, name: str) -> Future[Outcome]:
    return worker.submit(Task(Assignment(shard(name)), hint=0, rows_ready=0))


def test_shards_follow_one_another(worker: Worker) -> None:
    outcomes = [submit(worker, f"{number}.tar") for number in range(4)]
    assert [future.result(30).marker.counts for future in outcomes] == [{"ok": 24}] * 4
    assert worker.progress["images"] == 96 and worker.progress["bad"] == 0
    assert worker.progress["bytes_written"] == sum(future.result().bytes_written for future in outcomes) > 0


def test_a_shard_that_cannot_be_read_leaves_the_others_alone(worker: Worker) -> None:
    futures = [submit(worker, name) for name in ("a.tar", "unreadable.tar", "b.tar")]
    with pytest.raises(OSError, match="connection reset"):
        futures[1].result(30)
    assert futures[0].result(30).committed and futures[2].result(30).committed


def test_two_stages_that_fail_one_shard_together(worker: Worker, engine: Engine) -> None:
    """The later failure is not an error of its own: the stage lives on for the next shard."""
    broken = worker._job(Task(Assignment(shard("a.tar")), hint=0, rows_ready=0))
    for error in (OSError("reader"), OSError("writer")):
        worker._fail(broken, error)
    assert str(broken.future.exception()) == "reader"
    assert submit(worker, "b.tar").result(30).committed


def test_an_error_while_computing_is_the_shards(worker: Worker, engine: Engine) -> None:
    def explode(batch: Batch) -> None:
        if batch.ids[0] == ("bad.tar", "8"):
            raise RuntimeError("CUDA error: an illegal memory access")

    engine.before = explode
    futures = [submit(worker, name) for name in ("bad.tar", "good.tar")]
    with pytest.raises(RuntimeError, match="illegal memory access"):
        futures[0].result(30)
    assert futures[1].result(30).committed


def test_an_error_while_writing_is_the_shards(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """And never followed by a marker."""
    write = Attempt.write

    def refuse(self: Attempt, block: object) -> None:
        if self._assignment.shard.id == "bad.tar":
            raise OSError("SlowDown")
        write(self, block)  # type: ignore[arg-type]

    monkeypatch.setattr(Attempt, "write", refuse)
    futures = [submit(worker, name) for name in ("bad.tar", "good.tar")]
    with pytest.raises(OSError, match="SlowDown"):
        futures[0].result(30)
    assert futures[1].result(30).committed


def test_the_next_shard_computes_while_the_last_uploads(
    worker: Worker, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An upload that waits for the next shard's computation would wait for ever if stages did not overlap."""
    computing = threading.Event()
    commit = Attempt.commit

    def slow(self: Attempt, *rest: object) -> Outcome:
        assert computing.wait(20), "the next shard was not begun during the upload"
        return commit(self, *rest)  # type: ignore[arg-type]

    engine.before = lambda batch: computing.set() if batch.ids[0][0] == "second.tar" else None
    monkeypatch.setattr(Attempt, "commit", slow)
    futures = [submit(worker, name) for name in ("first.tar", "second.tar")]
    assert all(future.result(30).committed for future in futures)


def test_queues_are_bounded(worker: Worker, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow store must not fill the memory: computing waits for the writer, blocks do not pile up."""
    writing, held = threading.Event(), threading.Event()
    write = Attempt.write
    computed: list[object] = []

    def stuck(self: Attempt, block: object) -> None:
        writing.set()
        assert held.wait(20)
        write(self, block)  # type: ignore[arg-type]

    engine.before = computed.append
    monkeypatch.setattr(Attempt, "write", stuck)
    future = submit(worker, "a.tar")
    assert writing.wait(20)
    threading.Event().wait(0.5)
    assert len(computed) <= 3, "one block is being written, one waits, one is being filled"
    held.set()
    assert future.result(30).committed and len(computed) == BATCHES


def test_stages_report_what_they_did(worker: Worker) -> None:
    """With both ways of working: a stage that forgot to report would look idle."""
    submit(worker, "a.tar").result(30)
    threaded = worker.progress
    worker.run(Task(Assignment(shard("b.tar")), hint=0, rows_ready=0))
    for progress in (threaded, worker.progress):
        stages = {name for name, seconds in progress.items() if name.endswith("_s") and seconds > 0}
        assert stages == {"forward_s", "assemble_s", "encode_s", "upload_s"}  # what is read is made up here
    assert worker.progress["images"] == 2 * threaded["images"] == 48
    assert worker.queues == {"tasks": 0, "batches": 0, "blocks": 0}


def test_bad_samples_are_counted_and_logged_by_reason(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And a shard that breaks off, by its own."""

    def damaged(assignment: Assignment, *rest: object) -> Iterator[LoadedBatch | ShardEnd]:
        loaded, *_ = read(assignment, *rest)
        assert isinstance(loaded, LoadedBatch) and loaded.records[1] is not None
        loaded.records[1].reason = "no-image"
        yield loaded
        yield ShardEnd(4, True, BadShard("truncated-tar", "the file ends"))

    monkeypatch.setattr(workers, "read_batches", damaged)
    with caplog.at_level("DEBUG", "gatehouse"):
        submit(worker, "a.tar").result(30)
    found = worker.progress
    assert (found["images"], found["bad"], found["bad/no-image"], found["bad_shards/truncated-tar"]) == (
        4,
        1,
        1,
        1,
    )
    about = [(one.__dict__.get("shard"), one.__dict__.get("key"), one.message) for one in caplog.records]
    assert ("a.tar", "1", "bad sample: no-image") in about
    assert ("a.tar", None, "bad shard: the file ends") in about and ("a.tar", None, "committed") in about


def test_a_trace_shows_stages_of_several_shards_at_once(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "read_batches", read)
    spec = spec_of(str(tmp_path / "store"), "unused")
    make_store(spec.store, manifest())
    worker = Worker(spec, manifest(), engine, device="test", requests=2, meter=Meter(spans=1000))  # type: ignore[arg-type]
    for future in [submit(worker, f"{number}.tar") for number in range(2)]:
        future.result(30)
    spans = worker.meter.take_spans()
    assert {span.shard for span in spans} == {"0.tar", "1.tar"}
    assert {span.thread for span in spans if span.stage == "forward"} == {"compute"}
    assert all(span.thread != "compute" for span in spans if span.stage in ("encode", "upload"))


def test_without_threads(worker: Worker) -> None:
    """The serial way is the same work."""
    outcome = worker.run(Task(Assignment(shard()), hint=0, rows_ready=0))
    assert outcome.committed and outcome.marker.rows == 24
