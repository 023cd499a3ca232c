"""What gc may and may not remove, on stores whose attempts were interrupted at will."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline import FeatureStore, gc, ledger
from pipeline.batches import Assignment
from pipeline.storage import open_fs
from pipeline.verify import Verifier
from schemas.layout import attempt_path, digest
from schemas.receipts import Manifest
from tests.attempts import Draft, again, make_store, manifest, shard, store_shard
from tests.conftest import BucketUrl

KEYS = list("abcdef")  # two blocks


@pytest.fixture
def made_of() -> Manifest:
    return manifest()


@pytest.fixture
def url(tmp_path: Path, made_of: Manifest) -> str:
    """A store with one committed shard."""
    url = str(tmp_path / "store")
    make_store(url, made_of)
    store_shard(url, made_of, Assignment(shard("a.tar")), KEYS)
    return url


def files(url: str) -> dict[str, bytes]:
    """Everything in a store."""
    return {str(path.relative_to(url)): path.read_bytes() for path in Path(url).rglob("*") if path.is_file()}


def collect(url: str, *, abandoned: bool = False) -> gc.Findings:
    """Find and remove; what is committed must be untouched and sound."""
    store = FeatureStore(url)
    before = store.index, store.read(store.rows(), list(store.taps))
    findings = gc.find(url, abandoned=abandoned)
    gc.remove(url, findings)
    store = FeatureStore(url)
    assert store.index.equals(before[0])
    after = store.read(store.rows(), list(store.taps))
    assert all(np.array_equal(after[tap], values, equal_nan=True) for tap, values in before[1].items())
    assert list(Verifier(url, fast=False).faults()) == []
    return findings


def test_nothing_to_do(url: str) -> None:
    """A store without losers keeps every byte."""
    before = files(url)
    assert collect(url, abandoned=True) == gc.Findings([], set(), set())
    assert files(url) == before


@pytest.mark.parametrize("finished", [True, False])
def test_a_loser_leaves_only_its_claim(url: str, made_of: Manifest, finished: bool) -> None:
    """Its blocks and tables go, whether it found out that it lost or died before; its rows stay its own."""
    before = files(url)
    loser = Draft(url, made_of, Assignment(shard("a.tar")), hint=1)
    loser.write(KEYS)
    if finished:
        assert not loser.commit().committed
    findings = collect(url)
    assert findings.dead == {loser.attempt.id}
    assert findings.undecided == set()
    left = files(url)
    assert left.keys() - before.keys() == {"claims/0000000001.json"}
    assert all(left[path] == data for path, data in before.items() if "zarr.json" not in path)
    assert not (Path(url) / attempt_path("a.tar", loser.attempt.id)).exists()
    assert not (Path(url) / "features/plain/tap/c/2").exists()  # nor empty folders


def test_an_attempt_without_an_outcome_may_be_alive(url: str, made_of: Manifest) -> None:
    """One that was merely slow commits after gc has run, and everything it wrote is there."""
    slow = Draft(url, made_of, Assignment(shard("b.tar")), hint=1)
    slow.write(KEYS[:4])
    findings = collect(url)
    assert findings.undecided == {slow.attempt.id}
    assert findings.garbage == []
    slow.write(KEYS[4:])
    assert slow.commit().committed
    assert list(Verifier(url, fast=False).faults()) == []


def test_a_retry_that_is_at_work_is_no_loser(url: str, made_of: Manifest) -> None:
    """Its shard has a marker, but not of its round."""
    retry = Draft(url, made_of, again(Assignment(shard("a.tar")), 1, done=6), hint=1)
    retry.write(KEYS[:4])
    assert collect(url).undecided == {retry.attempt.id}


def test_abandoned_attempts(url: str, made_of: Manifest) -> None:
    """When no job runs, what has no outcome goes too, with staged files and probes."""
    before = files(url)
    dead = Draft(url, made_of, Assignment(shard("b.tar")), hint=1)
    dead.write(KEYS[:4])
    strays = ["probe-0123", "markers/.00112233445566778899aabbccddeeff.part"]
    strays.append("features/plain/tap/zarr.00112233445566778899aabbccddeeff.partial")
    for path in strays:
        (Path(url) / path).write_bytes(b"12345")
    assert collect(url).garbage == []
    findings = collect(url, abandoned=True)
    unfinished = [one for one in findings.garbage if one.kind == "unfinished"]
    assert {one.path for one in unfinished} == set(strays)
    assert {one.size for one in unfinished} == {5}
    assert files(url).keys() - before.keys() == {"claims/0000000001.json"}
    assert collect(url, abandoned=True).garbage == []


def test_a_job_that_runs_after_all(url: str, made_of: Manifest) -> None:
    """`--abandoned` beside a running job: what committed between search and removal must survive."""
    alive = Draft(url, made_of, Assignment(shard("b.tar")), hint=1)
    alive.write(KEYS[:4])
    findings = gc.find(url, abandoned=True)
    assert findings.garbage
    alive.commit()
    before = files(url)
    with pytest.raises(ValueError, match="has just committed, so a job is running; nothing was removed"):
        gc.remove(url, findings)
    assert files(url) == before


def test_committed_objects_are_never_removed(url: str) -> None:
    """Whatever a future search finds, removal looks again."""
    ledger.compact(url, ledger.read_ledger(url).fresh)
    before = files(url)
    kept = [path for path in before if path.startswith(("attempts", "features/plain/tap/c", "compact/"))]
    for path in kept:
        if path.endswith(".json"):
            continue
        with pytest.raises(AssertionError, match="garbage that is committed"):
            gc.remove(url, gc.Findings([gc.Garbage("blocks", path, 0)], set(), set()))
    assert files(url) == before


def test_old_compactions(url: str, made_of: Manifest) -> None:
    """The newest stays with all it names; a compaction in the making, with a higher number, stays as well."""
    ledger.compact(url, ledger.read_ledger(url).fresh)
    store_shard(url, made_of, Assignment(shard("b.tar")), KEYS)
    ledger.compact(url, ledger.read_ledger(url).fresh)
    folder = Path(url) / "compact"
    newest = json.loads((folder / "00000001.json").read_bytes())
    named = {ref["path"] for ref in newest["ledgers"] + newest["indexes"]}
    assert len(named) == 4
    lost = ["compact/00000000-x-index.parquet", "compact/00000001-x-ledger.parquet"]
    coming = ["compact/00000002-x-ledger.parquet", "compact/00000002-x-index.parquet"]
    for path in lost + coming:
        (Path(url) / path).write_bytes(b"x")
    findings = collect(url)
    assert {one.path for one in findings.garbage} == {*lost, "compact/00000000.json"}
    assert {path for path in files(url) if path.startswith("compact/")} == {
        *named,
        *coming,
        "compact/00000001.json",
    }


def test_a_broken_newest_compaction(url: str, made_of: Manifest) -> None:
    """Readers fall back to the one before, so that is the one to keep."""
    ledger.compact(url, ledger.read_ledger(url).fresh)
    (Path(url) / "compact" / "00000001.json").write_bytes(b"{")
    before = files(url)
    assert gc.find(url, abandoned=False).garbage == []
    assert files(url) == before


def test_leases(url: str) -> None:
    """Of decided rounds, and on the job but for the newest; whether a driver still lives only the caller can know."""
    lease = {name: f"leases/shards/{digest(name)}-0000-000000.json" for name in ("a.tar", "b.tar")}
    kept = ["leases/job-000002.json", "leases/drivers/d.json", "leases/drivers/mine.json", lease["b.tar"]]
    gone = ["leases/job-000000.json", "leases/job-000001.json", lease["a.tar"]]
    for path in kept + gone:
        (Path(url) / path).parent.mkdir(parents=True, exist_ok=True)
        (Path(url) / path).write_bytes(b"{}")
    findings = collect(url)
    assert sorted(one.path for one in findings.garbage) == sorted(gone)
    assert {one.kind for one in findings.garbage} == {"leases"}
    later = gc.find(url, abandoned=True, driver="mine")
    assert sorted(one.path for one in later.garbage) == sorted(["leases/drivers/d.json", lease["b.tar"]])


@pytest.mark.s3
def test_on_s3(s3: BucketUrl, made_of: Manifest) -> None:
    """Listings of object stores look different: no folders, no staging, paths that start with the bucket."""
    url = s3()
    make_store(url, made_of)
    store_shard(url, made_of, Assignment(shard("a.tar")), KEYS)
    loser = Draft(url, made_of, Assignment(shard("a.tar")), hint=1)
    loser.write(KEYS)
    assert not loser.commit().committed
    fs, root = open_fs(url)
    before = set(fs.find(root))
    findings = collect(url)
    gone = before - set(fs.find(root))
    assert gone == {f"{root}/{one.path}" for one in findings.garbage}
    assert len(gone) == 2 * 2 + 3  # blocks, tables
    assert collect(url, abandoned=True).garbage == []
