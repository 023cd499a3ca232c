"""How far a job is, from its store alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobs import endings, extract
from pipeline import storage
from pipeline.batches import Assignment
from pipeline.s3 import S3
from pipeline.status import look
from pipeline.store import StoreError
from schemas.layout import heartbeat_path
from schemas.lease import Heartbeat
from schemas.receipts import RunRecord
from schemas.status import Status
from tests.attempts import Draft, make_store, manifest, shard, store_shard
from tests.conftest import BucketUrl
from tests.s3_server import Server
from tests.stores import marker_of, spec_of, write_shards


@pytest.fixture
def url(tmp_path: Path) -> str:
    place = str(tmp_path / "store")
    make_store(place, manifest())
    return place


def run_record(**changes: object) -> bytes:
    fields = {
        "exit_code": 0, "outcome": "done", "started": "2026-01-01T00:00:00+00:00", "seconds": 100.0, "images": 50,
        "counts": {}, "set_aside": [], "device": "cpu", "actors": 1,
    }  # fmt: skip
    return RunRecord.model_validate(fields | changes).to_bytes()


def put(url: str, path: str, data: bytes, age_s: float = 0.0) -> None:
    """An object of a local store, written some time ago."""
    fs, root = storage.open_fs(url)
    storage.put(fs, f"{root}/{path}", data)
    os.utime(f"{root}/{path}", (time.time() - age_s,) * 2)


def heartbeat(**changes: object) -> bytes:
    fields = {
        "driver": "d", "mode": "exclusive", "host": "node7", "pid": 12, "command": "gatehouse extract a.yaml",
        "started": "2026-01-01T00:00:00+00:00", "ttl_s": 60.0,
    }  # fmt: skip
    return Heartbeat.model_validate(fields | changes).to_bytes()


def test_a_finished_job(built: Path) -> None:
    found = look(str(built / "store"), usd_per_hour=3600.0)
    assert (found.shards.done, found.shards.known, found.shards.left, found.shards.cut) == (2, 2, 0, 0)
    assert (found.rows.good, found.rows.bad, found.rows.left) == (8, 2, 0)
    assert found.rows.reasons == {"no-caption": 1, "undecodable-image": 1}
    assert found.left is not None and found.left.seconds == 0 and found.left.usd == 0
    assert found.last_run is not None and found.last_run.images == 10 and found.runs == 1
    assert found.spent_usd == pytest.approx(found.worked_s) and found.worked_s > 0
    assert found.notes == [] and found.drivers == []


def test_nothing_is_written(built: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in built.rglob("*")}
    look(str(built / "store"))
    assert {path: path.stat().st_mtime_ns for path in built.rglob("*")} == before


def test_a_job_that_a_limit_cut(tmp_path: Path) -> None:
    """What is left is told from the bytes of shards that are done."""
    write_shards(tmp_path / "shards")
    names = [str(tmp_path / "shards" / name) for name in ("a.tar", "sub/b.tar")]
    spec = spec_of(tmp_path / "store", names)
    assert extract.run(spec, limit=8, serial=True) == endings.DONE
    found = look(spec.store, usd_per_hour=1.0)
    assert (found.shards.done, found.shards.cut, found.shards.left, found.shards.known) == (1, 1, 1, 2)
    a, b = (marker_of(tmp_path / "store", name) for name in ("a.tar", "sub/b.tar"))
    assert found.rows.left == round(b.size * 6 / a.size - 2) > 0
    assert found.left is not None and found.left.seconds > 0
    assert found.left.usd == pytest.approx(found.left.seconds / 3600)
    # Other rounds of the shard do not double what is bad.
    assert extract.run(spec, serial=True) == endings.DONE
    assert look(spec.store).rows.reasons == {"no-caption": 1, "undecodable-image": 1}


def test_a_retry_takes_back_what_failed(url: str) -> None:
    """Reasons are those of the newest outcome, not of all tries."""
    store_shard(url, manifest(), Assignment(shard()), ["a", "b", "c"], {"a": "io-error", "b": "no-image"})
    assert look(url).rows.reasons == {"io-error": 1, "no-image": 1}
    again = Draft(url, manifest(), Assignment(shard(), round=1, start=None, only=frozenset([0]), done=3))
    again.write(["a"])
    again.commit()
    found = look(url)
    assert found.rows.reasons == {"no-image": 1}
    assert (found.rows.good, found.rows.bad) == (2, 1)


def test_an_input_that_cannot_be_listed(url: str, tmp_path: Path) -> None:
    """The store still says what is done; a pattern given in vain is the user's mistake."""
    store_shard(url, manifest(), Assignment(shard()), ["a"])
    found = look(url)
    assert found.shards.known is None and found.left is None and found.rows.good == 1
    assert "give --shards" in found.notes[0]
    with pytest.raises(ValueError, match=r"input"):
        look(url, [str(tmp_path / "*.tar")])


def test_a_pattern_of_another_folder_is_pointed_out(built: Path) -> None:
    """Ids are relative to the patterns' folder: all shards would seem to be left."""
    found = look(str(built / "store"), [str(built / "shards" / "sub" / "*.tar")])
    assert found.shards.left == 1
    assert (
        "none of the shards that are stored, such as a.tar, is among the 1 listed, such as b.tar"
        in found.notes[0]
    )


def test_drivers_and_the_rate_of_the_one_at_work(url: str) -> None:
    """Commits from before it began, and from before the last run ended, are not its own."""
    for number, age in enumerate((900, 500, 300, 200, 100)):
        outcome = store_shard(url, manifest(), Assignment(shard(f"{number}.tar")), ["a", "b"])
        path = Path(url) / "markers" / next(
            name for name in os.listdir(Path(url) / "markers") if outcome.marker.attempt in
            (Path(url) / "markers" / name).read_text()
        )  # fmt: skip
        os.utime(path, (time.time() - age,) * 2)
    put(url, "runs/a.json", run_record(), age_s=600)
    assert (rate := look(url).rate) is not None and rate.rows_per_s == pytest.approx(6 / 400, rel=0.02)
    put(url, "leases/job-000000.json", b"{}", age_s=800)
    put(url, "leases/job-000001.json", b"{}", age_s=350)
    put(
        url, heartbeat_path("d"), heartbeat(started="2999-01-01T00:00:00+00:00"), age_s=5
    )  # its clock is wrong
    put(url, heartbeat_path("e"), heartbeat(driver="e", host="node8"), age_s=100)
    found = look(url)
    assert [(one.host, one.alive) for one in found.drivers] == [("node8", False), ("node7", True)]
    assert found.drivers[1].silent_s == pytest.approx(5, abs=3)
    assert found.rate is not None and found.rate.source == "commits"
    assert found.rate.rows_per_s == pytest.approx(4 / 200, rel=0.02)
    assert found.last_commit_s == pytest.approx(100, abs=3)


def test_the_last_run_tells_the_rate_where_nothing_came_after_it(url: str) -> None:
    store_shard(url, manifest(), Assignment(shard()), ["a", "b"])
    put(url, "runs/a.json", run_record(), age_s=-1)
    put(
        url,
        "runs/b.json",
        run_record(images=0, seconds=3.0, exit_code=5, started="2026-01-01T01:00:00+00:00"),
        age_s=-2,
    )
    found = look(url)
    assert found.rate is not None and (found.rate.source, found.rate.rows_per_s) == ("last-run", 0.5)
    assert found.last_run is not None and found.last_run.exit_code == 5
    assert found.worked_s == 103


def test_runs_that_shared_a_job_are_paid_for_once(url: str) -> None:
    """The price is of all that works: four drivers for the same hour are one hour, at their rate together."""
    for number in range(4):
        put(url, f"runs/{number}.json", run_record(images=100, seconds=3600.0), age_s=-1)
    put(
        url,
        "runs/later.json",
        run_record(seconds=0.0, images=0, started="2026-01-02T00:00:00+00:00"),
        age_s=-1,
    )
    found = look(url, usd_per_hour=30.0)
    assert (found.runs, found.worked_s, found.spent_usd) == (5, 3600, 30)
    assert found.rate is not None and found.rate.rows_per_s == pytest.approx(400 / 3600)


def test_objects_of_another_release_are_counted_and_left_out(url: str) -> None:
    """A newer release's heartbeat must not hide what the store holds."""
    put(url, heartbeat_path("d"), b'{"driver": "d", "gpu": 8}')
    put(url, "runs/a.json", b"{}")
    found = look(url)
    assert found.drivers == [] and found.runs == 0
    assert any("1 objects in leases/drivers/ are not of this release" in note for note in found.notes)
    assert any("1 objects in runs/" in note for note in found.notes)


def test_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no feature store at"):
        look(str(tmp_path / "nothing"))


def test_on_s3_with_the_right_to_read_only(
    s3: BucketUrl, s3_server: Server, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Times are the server's: its own clock, and when it stored each object."""
    url = s3()
    fs, root = storage.open_fs(url)
    for path in (built / "store").rglob("*.*"):
        if path.is_file():
            fs.pipe_file(f"{root}/{path.relative_to(built / 'store')}", path.read_bytes())
    fs.pipe_file(f"{root}/{heartbeat_path('d')}", heartbeat())
    for key, value in s3_server.environment("reader").items():
        monkeypatch.setenv(key, value)
    S3.clear_instance_cache()  # clients are kept, with the identity that they were made with
    try:
        found = look(url)
    finally:
        S3.clear_instance_cache()
    assert (found.rows.good, found.rows.bad, found.shards.left) == (8, 2, 0)
    assert [driver.alive for driver in found.drivers] == [True]
    assert found.last_commit_s is not None and 0 <= found.last_commit_s < 120


def test_neither_torch_nor_ray_is_needed(built: Path) -> None:
    """On call, on a laptop, in a second: as `python -m jobs.cli` without them."""
    code = (
        "import sys; sys.modules['torch'] = sys.modules['ray'] = None\n"
        "from jobs.cli import main; main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, "status", str(built / "store"), "--json"]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert answer.returncode == 0, answer.stderr
    assert Status.model_validate(json.loads(answer.stdout)).rows.good == 8
