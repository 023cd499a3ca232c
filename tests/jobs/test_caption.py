"""The caption job as users start it: from spec to captions, through kills, new shards and second thoughts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs import caption
from jobs.endings import DONE, FAILED, SET_ASIDE, STOPPED
from pipeline.caption_shards import CaptionWorker, Outcome
from pipeline.captions import Captions, CaptionsError
from pipeline.listing import list_shards
from pipeline.shards import Shard
from pipeline.storage import open_fs
from schemas.captions import CaptionSpec
from schemas.specfile import dump, load
from tests import captioners
from tests.conftest import BucketUrl
from tests.faults.harness import kill_all, wait_until
from tests.tars import jpeg, make_tar


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return captioners.git(tmp_path_factory.mktemp("git"))


def write(folder: Path, shards: int, images: int = 5) -> None:
    folder.mkdir(exist_ok=True)
    for shard in range(shards):
        members = [(f"{n}.jpg", jpeg(40, 60, 100 * shard + n)) for n in range(images)]
        if not (folder / f"{shard}.tar").exists():
            make_tar(folder / f"{shard}.tar", [*members, ("bad.jpg", b"no image")])


@pytest.fixture
def spec(model: str, tmp_path: Path) -> CaptionSpec:
    write(tmp_path / "shards", 3)
    return spec_of(model, tmp_path)


def spec_of(model: str, folder: Path, **changes: Any) -> CaptionSpec:
    document = {
        "version": 1,
        "captions": f"{folder}/out",
        "input": {"shards": f"{folder}/shards/*.tar"},
        "model": {"source": model, "batch_size": 4},
        "max_new_tokens": 6,
        "cluster": {"device": "cpu", "actors": 2},
    }
    return CaptionSpec.model_validate(document | changes)


def changed(spec: CaptionSpec, **changes: Any) -> CaptionSpec:
    return CaptionSpec.model_validate(spec.model_dump() | changes)


def files(spec: CaptionSpec) -> dict[str, bytes]:
    folder = Path(spec.captions) / "shards"
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


def run(spec: CaptionSpec, **options: Any) -> int:
    return caption.run(spec, serial=True, **options)


def test_captions_for_every_shard(spec: CaptionSpec, capsys: pytest.CaptureFixture[str]) -> None:
    """Bad samples stop nothing; the summary says how fast it was."""
    assert run(spec) == DONE
    captions = Captions(spec.captions)
    for shard in list_shards(spec.input):
        assert list(captions.of(shard.id)) == [str(n) for n in range(5)]
    shown = capsys.readouterr().out
    assert "18 in" in shown and "a second" in shown and "bad: undecodable-image" in shown


def test_a_finished_job_does_nothing(
    spec: CaptionSpec, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even load the weights; and a new shard is all that is left to do."""
    assert run(spec) == DONE
    before = files(spec)
    with monkeypatch.context() as patch:
        patch.setattr(caption, "SerialCaptions", None)
        assert run(spec) == DONE
    assert "nothing to do: 3 shards have captions" in capsys.readouterr().out
    write(Path(spec.captions).parent / "shards", 4)
    assert run(spec) == DONE
    after = files(spec)
    assert len(after) == 4 and before.items() <= after.items()


def test_a_kill_between_shards_loses_nothing(model: str, tmp_path: Path) -> None:
    """What was stored is not touched again, and the rest is what it would have been."""
    write(tmp_path / "shards", 8, images=30)
    spec = spec_of(model, tmp_path, max_new_tokens=40)
    path = tmp_path / "spec.yaml"
    path.write_text(dump(spec))
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.caption", str(path), "--serial"], start_new_session=True
    )
    try:
        wait_until(lambda: files(spec), "the first shard")
    finally:
        kill_all(process.pid)
    process.wait()
    found = sorted((tmp_path / "out" / "shards").glob("*.parquet"))
    before = {path: path.stat().st_mtime_ns for path in found}
    assert 0 < len(before) < 8
    assert run(spec) == DONE
    assert {path: path.stat().st_mtime_ns for path in before} == before
    whole = changed(spec, captions=f"{tmp_path}/whole")
    assert run(whole) == DONE
    assert len(files(spec)) == 8 and files(spec) == files(whole)


def test_a_second_model_is_refused(spec: CaptionSpec, tmp_path: Path) -> None:
    """With the difference, before anything is loaded or written."""
    assert run(spec) == DONE
    before = files(spec)
    other = changed(spec, model={"source": captioners.git(tmp_path / "other", seed=1), "batch_size": 4})
    with pytest.raises(CaptionsError, match=r"model\.files\.model\.safetensors: the folder has"):
        run(other)
    with pytest.raises(CaptionsError, match=r"prompt: the folder has None, the spec 'a photo of'"):
        run(changed(spec, prompt="a photo of"))
    assert files(spec) == before


def test_a_changed_shard_is_refused(spec: CaptionSpec) -> None:
    assert run(spec) == DONE
    make_tar(Path(spec.captions).parent / "shards" / "1.tar", [("0.jpg", jpeg(9, 9))])
    with pytest.raises(CaptionsError, match=r"1\.tar: \d+ bytes, version \d+ when captioned; now 10240"):
        run(spec)


@pytest.mark.parametrize(("limit", "shards"), [(1, 1), (6, 1), (7, 2), (99, 3)])
def test_a_limit_is_rounded_up_to_whole_shards(spec: CaptionSpec, limit: int, shards: int) -> None:
    assert run(spec, limit=limit) == DONE
    assert len(files(spec)) == shards
    assert run(spec) == DONE
    assert len(files(spec)) == 3


def test_a_dry_run_shows_captions_and_cost(spec: CaptionSpec, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(spec, dry_run=True) == DONE
    assert not Path(spec.captions).exists()
    shown = capsys.readouterr().out
    for expected in ("the first batch of 0.tar", "3 of 3", "million parameters", "images/s in all"):
        assert expected in shown
    assert run(spec) == DONE
    words = Captions(spec.captions).of("0.tar")["0"].split()
    assert words[0] in shown


def test_failed_shards_are_in_the_exit_code(spec: CaptionSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """And are done by the same command, once they can be read."""
    worker_run = CaptionWorker.run

    def broken(bad: set[str]) -> Any:
        def attempt(self: CaptionWorker, shard: Shard) -> Outcome:
            if shard.id in bad:
                raise OSError("connection reset")
            return worker_run(self, shard)

        return attempt

    with monkeypatch.context() as patch:
        patch.setattr(CaptionWorker, "run", broken({"0.tar", "1.tar", "2.tar"}))
        assert run(spec) == FAILED
        patch.setattr(CaptionWorker, "run", broken({"1.tar"}))
        assert run(spec) == SET_ASIDE
    assert len(files(spec)) == 2
    assert run(spec) == DONE
    assert len(files(spec)) == 3


def test_a_signal_stops_between_shards(spec: CaptionSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    worker_run = CaptionWorker.run

    def and_stop(self: CaptionWorker, shard: Shard) -> Outcome:
        os.kill(os.getpid(), signal.SIGTERM)
        return worker_run(self, shard)

    with monkeypatch.context() as patch:
        patch.setattr(CaptionWorker, "run", and_stop)
        assert run(spec) == STOPPED
    assert len(files(spec)) == 1
    assert run(spec) == DONE


def test_what_is_wrong_is_said_before_work(spec: CaptionSpec, model: str, tmp_path: Path) -> None:
    source = {"source": captioners.git(tmp_path / "wide", crop=False), "batch_size": 4}
    with pytest.raises(ValueError, match=r"set image_size, or model\.batch_size: 1"):
        run(changed(spec, model=source))
    with pytest.raises(ValueError, match="no such file"):
        run(changed(spec, input={"shards": f"{tmp_path}/none/*.tar"}))
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="file"):
        run(changed(spec, captions=f"{tmp_path}/file/out"))
    assert not Path(spec.captions).exists()


@pytest.mark.s3
def test_the_same_on_s3(
    spec: CaptionSpec, s3: BucketUrl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a spec file; shards, model and captions in the bucket."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert run(spec) == DONE
    bucket = s3()
    fs, root = open_fs(bucket)
    fs.put(f"{tmp_path}/shards/", f"{root}/shards/", recursive=True)
    fs.put(f"{spec.model.source}/", f"{root}/model/", recursive=True)
    there = changed(
        spec,
        captions=f"{bucket}/captions",
        input={"shards": f"{bucket}/shards/*.tar"},
        model={"source": f"{bucket}/model", "batch_size": 4},
    )
    path = tmp_path / "spec.yaml"
    path.write_text(dump(there))
    assert run(load(str(path), model=CaptionSpec)) == DONE
    captions = Captions(there.captions)
    assert captions.fingerprint() == Captions(spec.captions).fingerprint()
    for shard in list_shards(there.input):
        assert captions.of(shard.id) == Captions(spec.captions).of(shard.id)
