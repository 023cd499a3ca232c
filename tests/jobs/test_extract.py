"""The job from spec to store, run in this process; `tests/faults` has the same on Ray, with processes killed."""

from __future__ import annotations

import json
import os
import signal
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from jobs import endings, extract
from pipeline import FeatureExtractor, FeatureStore, batches, embedded, todo
from pipeline.completeness import completeness
from pipeline.driving import driving
from pipeline.identity import IdentityError, backbone_fingerprint
from pipeline.probe import ProbeError
from pipeline.shards import Sample, Shard, read_shard
from pipeline.store import StoreError
from pipeline.verify import Verifier
from schemas.layout import heartbeat_path
from schemas.spec import ExtractSpec
from schemas.specfile import load
from tests import selections
from tests.conftest import BucketUrl
from tests.faults.harness import contents, markers, spec_of, write_shards
from tests.pipeline.test_status import heartbeat, put
from tests.stores import CHANNELS
from tests.tars import encode, header, jpeg, make_tar, pixels


@pytest.fixture
def shards(tmp_path: Path) -> str:
    return write_shards(tmp_path / "shards", shards=2, images=6)


def changed(spec: ExtractSpec, **changes: object) -> ExtractSpec:
    return ExtractSpec.model_validate(spec.model_dump() | changes)


def run(spec: ExtractSpec, **options: object) -> int:
    return extract.run(spec, serial=True, **options)  # type: ignore[arg-type]


def test_a_finished_job_does_nothing(
    shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even load the backbone or start Ray."""
    spec = spec_of(str(tmp_path / "store"), shards)
    assert run(spec) == endings.DONE
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*")}
    monkeypatch.setattr(extract, "SerialRunner", None)
    monkeypatch.setattr(extract, "RayRunner", None)
    assert run(spec) == extract.run(spec) == endings.DONE
    assert "nothing to do" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "store").rglob("*")} == before


def test_new_shards_are_appended(shards: str, tmp_path: Path) -> None:
    spec = spec_of(str(tmp_path / "store"), shards)
    assert run(spec) == endings.DONE
    before = contents(spec.store)
    committed = {
        path: path.read_bytes() for path in (tmp_path / "store").rglob("*.json") if "markers" in str(path)
    }
    write_shards(tmp_path / "shards", shards=3, images=6)
    for path in sorted((tmp_path / "shards").iterdir())[:2]:  # rewritten with the same bytes, but later
        os.utime(path, ns=(0, _version(tmp_path / "store", path.name)))
    assert run(spec) == endings.DONE
    after = contents(spec.store)
    assert len(after) == 18 and before.items() <= after.items()
    assert all(path.read_bytes() == data for path, data in committed.items())


def _version(store: Path, shard: str) -> int:
    found = [json.loads(path.read_text()) for path in markers(store)]
    return next(int(marker["version"]) for marker in found if marker["shard"] == shard)


def test_a_shard_that_changed_is_refused(shards: str, tmp_path: Path) -> None:
    spec = spec_of(str(tmp_path / "store"), shards)
    assert run(spec) == endings.DONE
    make_tar(tmp_path / "shards" / "01.tar", [("new.jpg", jpeg(8, 8))])
    with pytest.raises(
        todo.ChangedShard, match=r"01\.tar: \d+ bytes, version \d+ when stored; now 10240, \d+"
    ):
        run(spec)


def test_another_identity_is_refused_with_the_difference(shards: str, tmp_path: Path) -> None:
    spec = spec_of(str(tmp_path / "store"), shards)
    assert run(spec, limit=1) == endings.DONE
    groups = spec.model_dump()["groups"]
    other = changed(spec, groups=[groups[0], groups[1] | {"t": 100}])
    with pytest.raises(IdentityError, match=r"groups\.1\.timestep: the store has 51, the spec 101"):
        run(other)


@pytest.mark.parametrize("limits", [[1, 3, 1, 99], [6, 6], [11, 1], [12]])
def test_limits_stop_anywhere_and_the_rest_follows(limits: list[int], shards: str, tmp_path: Path) -> None:
    """In the middle of a batch or a block, at a shard's end: the parts equal the whole."""
    whole = spec_of(str(tmp_path / "whole"), shards)
    assert run(whole) == endings.DONE
    spec = spec_of(str(tmp_path / "store"), shards)
    done = 0
    for limit in limits:
        assert run(spec, limit=limit) == endings.DONE
        done = min(12, done + limit)
        assert len(FeatureStore(spec.store).index) == done
    assert contents(spec.store) == contents(whole.store)


def test_every_kind_of_bad_sample_becomes_a_row(tmp_path: Path) -> None:
    """None stops the job, none is skipped in silence, and good rows do not notice their neighbours."""
    good = encode(Image.fromarray(pixels(40, 40)), "JPEG")
    frames = [Image.fromarray(pixels(8, 8, seed)) for seed in range(2)]
    (tmp_path / "shards").mkdir()
    make_tar(
        tmp_path / "shards" / "0.tar",
        [
            ("good.jpg", good),
            ("good.txt", b"a caption"),
            ("empty.jpg", b""),
            ("text.jpg", b"this is no image"),
            ("cut.jpg", good[: len(good) // 2]),
            ("none.txt", b"a caption without an image"),
            ("moves.webp", encode(frames[0], "WEBP", save_all=True, append_images=frames[1:])),
            ("bomb.png", encode(Image.new("1", (20_000, 6_000)), "PNG")),
            ("good.jpg", good),
            ("nocaption.jpg", good),
            ("binary.jpg", good),
            ("binary.txt", b"\xff\xfe\x00"),
            ("../../etc/passwd.jpg", good),
            header("link.jpg", tarfile.SYMTYPE, "/etc/passwd"),
            ("cmyk.jpg", encode(Image.fromarray(pixels(9, 9)).convert("CMYK"), "JPEG")),
            ("one.png", encode(Image.new("RGBA", (1, 1)), "PNG")),
        ],
    )
    in_b = 512 + -(-len(good) // 512) * 512 + 512 + len(good) // 2
    (tmp_path / "shards" / "1.tar").write_bytes(make_tar(None, [("a.jpg", good), ("b.jpg", good)])[:in_b])
    (tmp_path / "shards" / "2.tar").write_bytes(b"no tar at all" * 100)
    spec = changed(spec_of(str(tmp_path / "store"), f"{tmp_path}/shards/*.tar"), max_bad_fraction=1.0)
    assert run(spec) == endings.DONE
    store = FeatureStore(spec.store)
    outcomes = [(line["key"], line["status"], line["reason"]) for line in store.index.to_pylist()]
    assert outcomes[:14] == [
        ("good", "ok", None),
        ("empty", "failed", "empty-image"),
        ("text", "failed", "undecodable-image"),
        ("cut", "failed", "truncated-image"),
        ("none", "failed", "no-image"),
        ("moves", "failed", "animated-image"),
        ("bomb", "failed", "decompression-bomb"),
        ("good", "failed", "duplicate-key"),
        ("nocaption", "partial", "no-caption"),
        ("binary", "partial", "undecodable-caption"),
        ("../../etc/passwd", "failed", "unsafe-name"),
        ("link", "failed", "link-member"),
        ("cmyk", "partial", "no-caption"),
        ("one", "partial", "no-caption"),
    ]
    assert outcomes[14:] == [
        ("a", "partial", "no-caption"),
        (None, "failed", "truncated-tar"),
        (None, "failed", "not-a-tar"),
    ]
    groups = {line["key"]: line["groups"] for line in store.index.to_pylist()}
    assert groups["binary"] == {
        "plain": {"status": "ok", "reason": None},
        "caption": {"status": "failed", "reason": "undecodable-caption"},
    }


def test_too_many_bad_samples_fail_the_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is stored stays, and the exit code is in the store too."""
    (tmp_path / "shards").mkdir()
    members = [(f"{number}.jpg", b"bad" if number % 2 else jpeg(8, 8, number)) for number in range(6)]
    make_tar(tmp_path / "shards" / "0.tar", members)
    spec = spec_of(str(tmp_path / "store"), f"{tmp_path}/shards/*.tar")
    assert run(spec) == endings.TOO_MANY_BAD
    assert "bad: undecodable-image" in capsys.readouterr().out
    (record,) = (tmp_path / "store" / "runs").iterdir()
    assert json.loads(record.read_text())["exit_code"] == endings.TOO_MANY_BAD
    assert len(FeatureStore(spec.store).index) == 6


def test_io_errors_are_retried_then_set_aside_then_retried_again(
    shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard that cannot be read waits for --retry-failed; what was committed of other shards is untouched."""
    whole = spec_of(str(tmp_path / "whole"), shards)
    assert run(whole) == endings.DONE
    tries: list[str] = []

    def broken(shard: Shard, *wanted: Any) -> object:
        for sample in read_shard(shard, *wanted):
            if shard.id == "01.tar" and sample.index == 3:
                tries.append(shard.id)
                raise OSError("connection reset")
            yield sample

    spec = spec_of(str(tmp_path / "store"), shards)
    with monkeypatch.context() as patch:
        patch.setattr(batches, "read_shard", broken)
        assert run(spec) == endings.SET_ASIDE
    assert tries == ["01.tar"] * 3
    index = FeatureStore(spec.store).index.to_pylist()
    assert [(line["shard"], line["key"], line["reason"]) for line in index[6:]] == [
        ("01.tar", None, "io-error")
    ]
    assert "connection reset" in index[6]["detail"]
    assert run(spec) == endings.SET_ASIDE, "nothing to do, unless asked to retry, and still not well"
    assert run(spec, retry_failed=True) == endings.DONE
    assert contents(spec.store) == contents(whole.store)


def test_only_what_failed_is_done_again(shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sample of a shard: in its own slot, in a new row, with a marker of its own, and nothing else moves."""
    whole = spec_of(str(tmp_path / "whole"), shards)
    assert run(whole) == endings.DONE

    def flaky(shard: Shard, *wanted: Any) -> object:
        for sample in read_shard(shard, *wanted):
            bad = shard.id == "01.tar" and sample.index == 3
            yield Sample(3, sample.key, None, "io-error", "flaky") if bad else sample

    spec = spec_of(str(tmp_path / "store"), shards)
    with monkeypatch.context() as patch:
        patch.setattr(batches, "read_shard", flaky)
        assert run(spec) == endings.SET_ASIDE
    before = {line["row"]: line for line in FeatureStore(spec.store).index.to_pylist()}
    assert run(spec, retry_reasons=["no-image"]) == endings.SET_ASIDE
    assert {line["row"]: line for line in FeatureStore(spec.store).index.to_pylist()} == before
    assert run(spec, retry_failed=True) == endings.DONE
    after = {line["row"]: line for line in FeatureStore(spec.store).index.to_pylist()}
    assert len(after) == 12 and len(after.keys() - before.keys()) == 1
    assert contents(spec.store) == contents(whole.store)


def test_a_dry_run_writes_nothing(shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = spec_of(str(tmp_path / "store"), shards)
    assert run(spec, dry_run=True) == endings.DONE
    assert not (tmp_path / "store").exists()
    shown = capsys.readouterr().out
    for expected in (
        "shards",
        "12",
        f"[{CHANNELS[1]}, 4, 4]",
        "float16",
        f"{CHANNELS[1] * 16 * 2:,}",
        "memory an actor",
        "in a probe of two",
    ):
        assert expected in shown


def test_values_that_cannot_be_stored_are_refused_before_work(
    shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The probe proposes float32 for that tap; nothing is created."""
    from pipeline import features

    pack = features.pack

    def loud(activation: Any, *options: Any) -> object:
        return pack(activation * 1e6, *options)

    monkeypatch.setattr(features, "pack", loud)
    spec = spec_of(str(tmp_path / "store"), shards)
    with pytest.raises(ProbeError, match=r"plain: taps: \{name: up-level1-upsampler-out, dtype: float32\}"):
        run(spec)
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["leases"]


def test_a_store_of_another_version_is_refused(shards: str, tmp_path: Path) -> None:
    spec = spec_of(str(tmp_path / "store"), shards)
    assert run(spec, limit=1) == endings.DONE
    manifest = tmp_path / "store" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"schema_version": 2', '"schema_version": 1'))
    with pytest.raises(StoreError, match="is not of schema version 2, the one that this release reads"):
        run(spec)


def test_beside_another_driver(
    shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Refused before the backbone is loaded; a plan may be looked at, and a job that shares may join one that does."""
    spec = spec_of(str(tmp_path / "store"), shards)
    with driving(spec.store, "exclusive", 3.0), monkeypatch.context() as patch:
        assert run(spec, dry_run=True) == endings.DONE
        patch.setattr(extract, "SerialRunner", None)
        assert run(spec) == run(spec, share=True) == endings.HELD
        assert "another driver is at work there" in caplog.text
    assert not (tmp_path / "store" / "runs").exists()
    with driving(spec.store, "shared", 3.0):
        assert run(spec) == endings.HELD
        assert run(spec, share=True) == endings.DONE
    assert len(contents(spec.store)) == 12


def test_what_another_driver_stored_meanwhile_is_not_done_again(
    shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It ended after this one had looked what is left, and before this one had the lease."""
    spec = spec_of(str(tmp_path / "store"), shards)

    def late(*arguments: Any) -> Any:
        monkeypatch.setattr(extract, "driving", driving)
        assert run(spec) == endings.DONE
        return driving(*arguments)

    monkeypatch.setattr(extract, "driving", late)
    assert run(spec) == endings.DONE
    assert "nothing to do: of 12 samples" in capsys.readouterr().out
    assert len(list((tmp_path / "store" / "claims").iterdir())) == 2


def test_a_run_that_was_killed_before_its_record(shards: str, tmp_path: Path) -> None:
    """All is committed, yet readers take the store for unfinished; the same command says once that it is done."""
    spec = spec_of(str(tmp_path / "store"), shards)
    assert run(spec) == endings.DONE
    for record in (tmp_path / "store" / "runs").iterdir():
        record.unlink()
    assert completeness(FeatureStore(spec.store)).gaps == ["no run over it has ended yet"]
    assert run(spec) == run(spec) == endings.DONE
    assert completeness(FeatureStore(spec.store)).gaps == []
    (record,) = (tmp_path / "store" / "runs").iterdir()
    put(spec.store, heartbeat_path("d"), heartbeat())  # of one that was killed after its record
    assert completeness(FeatureStore(spec.store)).gaps != []
    os.utime(tmp_path / "store" / heartbeat_path("d"), (record.stat().st_mtime - 70,) * 2)
    record.unlink()
    one = changed(spec, input={"shards": shards.replace("*", "00"), "root": str(tmp_path / "shards")})
    assert run(one) == endings.DONE
    assert completeness(FeatureStore(spec.store)).gaps != [], "it was asked for a part"
    assert run(spec) == endings.DONE
    assert completeness(FeatureStore(spec.store)).gaps == []


@pytest.mark.ray
@pytest.mark.parametrize(("where", "serial"), [("make_plan", True), ("open_store", False)])
def test_term_before_any_shard_is_in_work(
    where: str,
    serial: bool,
    shards: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """While it plans, or waits for a machine for hours: the code says that the command goes on, and no lease stays."""
    step = getattr(extract, where)

    def slow(*arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return step(*arguments)

    monkeypatch.setattr(extract, where, slow)
    spec = spec_of(str(tmp_path / "store"), shards)
    assert extract.run(spec, serial=serial) == endings.STOPPED
    assert "stopped; the same command goes on from here" in caplog.text
    assert list(tmp_path.glob("store/leases/drivers/*")) == []
    monkeypatch.setattr(extract, where, step)
    assert run(spec) == endings.DONE


def test_a_limit_cannot_be_shared(shards: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--share and --limit exclude each other"):
        run(spec_of(str(tmp_path / "store"), shards), limit=1, share=True)


@pytest.mark.ray
@pytest.mark.s3
def test_the_same_on_ray_and_s3(shards: str, tmp_path: Path, s3: BucketUrl) -> None:
    """Other URLs and other runners, the same bytes; then with one actor, and read back with a relative path."""
    quiet = spec_of(str(tmp_path / "quiet"), shards)
    assert run(quiet) == endings.DONE
    store = f"{s3()}/store"
    assert extract.run(spec_of(store, shards, actors=2)) == endings.DONE
    assert contents(store) == contents(quiet.store)


def test_a_spec_file_with_relative_paths(
    shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    document = spec_of("features/store", "shards/*.tar").model_dump_json()
    Path("spec.yaml").write_text(document)
    spec: ExtractSpec = load("spec.yaml")
    assert run(spec, limit=2) == endings.DONE
    assert FeatureStore("features/store").manifest.spec["store"] == str(tmp_path / "features" / "store")


def test_an_outage_of_the_input_sets_nothing_aside(
    shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Where no shard succeeds, the fault is not the shards': once it is over, the same command does them all."""
    write_shards(tmp_path / "shards", shards=4, images=6)

    def down(*_: Any) -> object:
        raise OSError("no route to host")
        yield

    spec = spec_of(str(tmp_path / "store"), shards)
    assert run(spec, limit=1) == endings.DONE
    with monkeypatch.context() as patch:
        patch.setattr(batches, "read_shard", down)
        assert run(spec) == endings.FAILED
    assert "the first 3 shards failed 3 times each and none succeeded" in caplog.text
    assert len(markers(tmp_path / "store")) == 1
    codes = [
        json.loads(path.read_text())["exit_code"] for path in sorted((tmp_path / "store" / "runs").iterdir())
    ]
    assert sorted(codes) == [endings.DONE, endings.FAILED]
    assert run(spec) == endings.DONE
    assert len(contents(spec.store)) == 24


def test_the_exit_code_does_not_heal_by_repetition(tmp_path: Path) -> None:
    """A scheduler that repeats the command until it gets 0 must not record a success."""
    (tmp_path / "shards").mkdir()
    for number in range(3):
        (tmp_path / "shards" / f"{number}.tar").write_bytes(b"<html>404</html>" * 100)
    write_shards(tmp_path / "more", shards=1, images=4)
    spec = spec_of(str(tmp_path / "store"), f"{tmp_path}/*/*.tar")
    assert run(spec) == run(spec) == endings.TOO_MANY_BAD


def test_folders_that_move_ids_are_refused(tmp_path: Path) -> None:
    """Adding a second folder moves the default root up: the same files must not be stored again under new ids."""
    for name in ("train", "val"):
        write_shards(tmp_path / name, shards=1, images=2)
    spec = spec_of(str(tmp_path / "store"), f"{tmp_path}/train/*.tar")
    assert run(spec) == endings.DONE
    both = spec.model_dump()
    both["input"]["shards"] = [f"{tmp_path}/train/*.tar", f"{tmp_path}/val/*.tar"]
    with pytest.raises(
        todo.ChangedShard, match=r"train/00\.tar is stored already, as 00\.tar.*state input\.root"
    ):
        run(ExtractSpec.model_validate(both))
    both["input"]["root"] = f"{tmp_path}/train"
    with pytest.raises(ValueError, match="root"):
        run(ExtractSpec.model_validate(both))


def test_pooled_vectors_only(shards: str, tmp_path: Path) -> None:
    """No array is made, none is grown, also for shards that were not expected."""
    spec = changed(spec_of(str(tmp_path / "store"), shards), output={"maps": False, "pooled": True})
    assert run(spec, limit=3) == endings.DONE
    assert run(spec) == endings.DONE
    store = FeatureStore(spec.store)
    table = store.pooled(["plain/up-level1-upsampler-out"])
    assert table["row"].to_pylist() == store.rows().tolist() and len(table) == 12
    assert not (tmp_path / "store" / "features").exists()


def test_missing_rights_are_named_before_the_backbone_is_loaded(
    shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(extract, "SerialRunner", None)
    with pytest.raises(OSError, match="file"):
        run(spec_of(str(tmp_path / "file" / "store"), shards))


def test_other_libraries_are_said(shards: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spec = spec_of(str(tmp_path / "store"), shards)
    assert run(spec, limit=1) == endings.DONE
    manifest = tmp_path / "store" / "manifest.json"
    document = json.loads(manifest.read_text())
    document["libraries"]["torch"] = "1.0"
    manifest.write_text(json.dumps(document))
    assert run(spec) == endings.DONE
    assert "the store was begun with torch 1.0" in caplog.text


def scores_of(store: str) -> dict[tuple[str, str], dict[str, float | None]]:
    """By shard and key, of the rows that are not bad."""
    lines = FeatureStore(store).index.to_pylist()
    return {(line["shard"], line["key"]): line["scores"] for line in lines if line["status"] != "failed"}


def test_scores_are_in_the_index(shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same with limits, retries and compactions in between, beside features that they leave as they are."""
    make_tar(tmp_path / "shards" / "02.tar", [("a.jpg", jpeg(8, 8)), ("b.jpg", b"bad"), ("b.txt", b"a bird")])
    options = {"max_bad_fraction": 0.5, "output": {"scores": {}}}
    plain = changed(spec_of(str(tmp_path / "plain"), shards), max_bad_fraction=0.5)
    whole, spec = (changed(spec_of(str(tmp_path / name), shards), **options) for name in ("whole", "store"))
    assert run(plain) == run(whole) == endings.DONE

    def flaky(shard: Shard, *wanted: Any) -> object:
        for sample in read_shard(shard, *wanted):
            bad = shard.id == "01.tar" and sample.index == 3
            yield Sample(3, sample.key, None, "io-error", "flaky") if bad else sample

    with monkeypatch.context() as patch:
        patch.setattr(batches, "read_shard", flaky)
        assert run(spec, limit=4) == endings.DONE
        assert run(spec) == endings.SET_ASIDE
    assert scores_of(spec.store).keys() == scores_of(whole.store).keys() - {("01.tar", "003")}
    assert run(spec, retry_failed=True) == endings.DONE
    assert contents(spec.store) == contents(plain.store)
    found = scores_of(spec.store)
    assert found == scores_of(whole.store) and len(found) == 13
    assert found.pop(("02.tar", "a"))["caption"] is None, "a sample without caption"
    assert all(-10 < value < 1 for score in found.values() for value in score.values() if value is not None)
    bad = [line["scores"] for line in FeatureStore(spec.store).index.to_pylist() if line["key"] == "b"]
    assert bad == [{"plain": None, "caption": None}]
    assert "scores" not in FeatureStore(plain.store).index.column_names
    for store in (plain.store, spec.store):
        assert list(Verifier(store, fast=False).faults()) == []
    with pytest.raises(IdentityError, match=r"output\.scores: the store has \{'prompt': 'a photo',"):
        run(changed(plain, store=spec.store))


def test_a_dry_run_says_what_scores_cost(
    shards: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = changed(spec_of(str(tmp_path / "store"), shards), output={"scores": {}})
    assert run(spec, dry_run=True) == endings.DONE
    assert "5 an image, 3 of them for scores alone" in capsys.readouterr().out


def select(path: Path, spec: ExtractSpec, **fields: Any) -> str:
    """A selection of a spec's groups, for the embedded backbone."""
    groups = [one.model_dump(mode="json") for one in spec.groups]
    fields = {"backbone": backbone_fingerprint(Path(embedded.BACKBONE))} | fields
    return selections.write(path, selections.selection(*groups, **fields))


def test_groups_of_a_selection(
    shards: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same store as of the same groups by hand or from elsewhere, which says where they came from."""
    monkeypatch.chdir(tmp_path)
    by_hand = spec_of(str(tmp_path / "store"), shards)
    for name in ("gate", "copy"):
        select(tmp_path / name / "selection.json", by_hand)
    Path("spec.yaml").write_text(
        json.dumps(by_hand.model_dump(mode="json") | {"groups": "./gate/selection.json"})
    )
    selected: ExtractSpec = load("spec.yaml")
    assert run(selected, limit=5) == endings.DONE
    record = FeatureStore("store").manifest.spec["selection"]
    assert record["url"] == str(tmp_path / "gate" / "selection.json")
    assert record["judged"][0]["verdict"] == "suppresses"
    assert run(load("spec.yaml", ["groups=copy/selection.json"]), limit=3) == endings.DONE
    assert run(by_hand) == endings.DONE
    assert len(contents("store")) == 12
    assert run(changed(selected, store=str(tmp_path / "other")), dry_run=True) == endings.DONE
    assert "of the selection" in capsys.readouterr().out
    (tmp_path / "gate" / "selection.json").unlink()
    extract_again = FeatureExtractor.from_store("store")
    assert extract_again.spec.selection is not None


def test_a_selection_for_another_backbone_is_refused(shards: str, tmp_path: Path) -> None:
    """Before any work: what suppresses shift in one backbone may not in another."""
    spec = spec_of(str(tmp_path / "store"), shards)
    select(tmp_path / "selection.json", spec, backbone="f" * 64)
    path = tmp_path / "spec.yaml"
    path.write_text(json.dumps(spec.model_dump(mode="json") | {"groups": f"{tmp_path}/selection.json"}))
    with pytest.raises(ValueError, match="for the backbone 'embedded' with files ffffffffffff, and backbone"):
        run(load(str(path)))
    assert not (tmp_path / "store").exists()
