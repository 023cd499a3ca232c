"""The LoRA job as users start it: from spec to two files, through kills, signals and second thoughts."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from typer.testing import CliRunner

from jobs import endings, train_lora
from jobs.cli import app
from jobs.endings import DONE, FAILED, STOPPED
from pipeline import families
from pipeline.families.stable_diffusion import StableDiffusion
from pipeline.lora_training import LoraStage
from pipeline.storage import StorageError, open_fs
from pipeline.techniques.lora import Lora
from pipeline.training.loop import CHECKPOINT
from pipeline.training.recorded import Batch
from schemas import techniques as specs
from schemas.lora import MANIFEST, LoraSpec
from schemas.specfile import dump, load
from tests import backbones
from tests.conftest import BucketUrl
from tests.faults.harness import kill_all, wait_until
from tests.tars import jpeg, make_tar

TINY = Path(__file__).parents[1] / "data" / "golden" / "sd15-tiny"
STEPS = 12
FILES = ("moderate.safetensors", "overfitted.safetensors")


def write_shards(folder: Path) -> None:
    """Two shards of four pictures, one of them damaged, one without a caption."""
    folder.mkdir()
    for shard in range(2):
        members = []
        for image in range(4):
            bad = (shard, image) == (1, 2)
            members.append((f"{image}.jpg", b"no image" if bad else jpeg(40, 60, 10 * shard + image)))
            if (shard, image) != (0, 3):
                members.append((f"{image}.txt", f"picture {image}".encode()))
        make_tar(folder / f"{shard}.tar", members)


def changed(spec: LoraSpec, **changes: Any) -> LoraSpec:
    return LoraSpec.model_validate(spec.model_dump() | changes)


def spec_of(folder: Path, out: Path, **changes: Any) -> LoraSpec:
    document = {
        "version": 1,
        "lora": str(out),
        "input": {"shards": f"{folder}/*.tar"},
        "image_size": [64, 64],
        "images": 5,
        "backbone": {"source": str(TINY), "batch_size": 2},
        "steps": STEPS,
        "moderate_at": 0.25,
        "learning_rate": 1e-3,
        "checkpoint_every": 4,
        "samples": None,
        "device": "cpu",
    }
    return LoraSpec.model_validate(document | changes)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("job") / "shards"
    write_shards(folder)
    return folder


@pytest.fixture(scope="module")
def undisturbed(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> LoraSpec:
    """A job that went through; not to be changed."""
    spec = spec_of(shards, tmp_path_factory.mktemp("undisturbed") / "out")
    assert train_lora.run(spec) == DONE
    return spec


@pytest.fixture
def spec(shards: Path, tmp_path: Path) -> LoraSpec:
    return spec_of(shards, tmp_path / "out")


@pytest.fixture
def copied(undisturbed: LoraSpec, tmp_path: Path) -> LoraSpec:
    """The spec of a copy of the finished job's folders."""
    for suffix in ("", "-work"):
        shutil.copytree(f"{undisturbed.lora}{suffix}", tmp_path / f"out{suffix}")
    return changed(undisturbed, lora=str(tmp_path / "out"))


def files(spec: LoraSpec) -> dict[str, bytes]:
    return {name: Path(spec.lora, name).read_bytes() for name in FILES}


def test_two_files_for_the_lora_technique(undisturbed: LoraSpec) -> None:
    """Both are read by the technique, differ, and say what they are without saying where they were made."""
    moderate, overfitted = (Path(undisturbed.lora, name) for name in FILES)
    factors, later = load_file(moderate), load_file(overfitted)
    assert factors.keys() == later.keys() and any(
        not torch.equal(factors[key], later[key]) for key in factors
    )
    for path, step in ((moderate, STEPS // 4), (overfitted, STEPS)):
        Lora.check(specs.Lora(type="lora", source=str(path)), StableDiffusion, TINY)
        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["gatehouse"])
        assert (about["rank"], about["alpha"], about["step"], about["steps"]) == (4, 2.0, step, STEPS)
        assert len(about["images"]) == 5 and len(about["fingerprint"]) == 64
        assert "unet/diffusion_pytorch_model.safetensors" in about["backbone"]
        assert about["spec"]["learning_rate"] == 1e-3 and not {"lora", "work", "input"} & about["spec"].keys()
        assert str(Path(undisturbed.lora).parent) not in str(about)  # files are given to others
    log = [json.loads(line) for line in Path(undisturbed.lora, "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == list(range(1, STEPS + 1))


def test_the_file_is_the_trained_network(
    spec: LoraSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Merged by the technique, its loss is that of the network in training, for the same images and noise."""
    stages: list[LoraStage] = []
    make = train_lora._stage

    def kept(*arguments: Any) -> LoraStage:
        stages.append(make(*arguments))
        return stages[0]

    monkeypatch.setattr(train_lora, "_stage", kept)
    assert train_lora.run(changed(spec, steps=4)) == DONE
    backbone = families.load(TINY, dtype=torch.float32, device="cpu")
    source = f"{spec.lora}/overfitted.safetensors"
    merged = LoraStage(backbone, {}, stages[0]._encoded, 2)

    def loss(stage: LoraStage) -> float:
        with torch.no_grad():
            return stage.loss(stage.draw(torch.Generator().manual_seed(5)))[0].item()

    before = loss(merged)
    Lora(specs.Lora(type="lora", source=source), backbone).attach()
    assert loss(merged) == pytest.approx(loss(stages[0]), rel=1e-5)
    assert abs(loss(merged) - before) > 1e-5


def test_a_kill_changes_no_byte(spec: LoraSpec, undisturbed: LoraSpec, tmp_path: Path) -> None:
    """The same command goes on from the last checkpoint."""
    path = tmp_path / "spec.yaml"
    path.write_text(dump(spec))
    process = subprocess.Popen(
        [sys.executable, "-m", "jobs.train_lora", str(path)],
        stdout=subprocess.PIPE,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},  # bytes depend on it
    )
    try:
        wait_until((Path(spec.work_folder) / CHECKPOINT).exists, "a checkpoint")
    finally:
        kill_all(process.pid)
    process.communicate()
    assert not Path(spec.lora, FILES[1]).exists()
    assert train_lora.run(spec) == DONE
    assert files(spec) == files(undisturbed)


@pytest.mark.parametrize("at", [STEPS // 4, STEPS - 1])
def test_a_signal_stops_after_a_step(
    at: int, spec: LoraSpec, undisturbed: LoraSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss, calls = LoraStage.loss, []

    def and_stop(self: LoraStage, batch: Batch) -> Any:
        calls.append(1)
        if len(calls) == at:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(LoraStage, "loss", and_stop)
        assert train_lora.run(spec) == STOPPED
    assert len(calls) == at
    assert not any(Path(spec.lora, name).exists() for name in FILES)
    assert train_lora.run(spec) == DONE
    assert files(spec) == files(undisturbed)


def test_a_second_signal_stops_at_once(spec: LoraSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endings, "_ONE_SIGNAL_S", 0.0)

    def and_stop(self: LoraStage, batch: Batch) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        raise AssertionError("unreachable")

    monkeypatch.setattr(LoraStage, "loss", and_stop)
    assert train_lora.run(spec) == STOPPED
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_loss_that_is_no_number_fails(
    spec: LoraSpec, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(LoraStage, "loss", lambda *_: (torch.tensor(torch.nan, requires_grad=True), {}))
    assert train_lora.run(spec) == FAILED
    assert "lower learning rate" in caplog.text


def test_a_finished_job_does_nothing(
    undisturbed: LoraSpec, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_lora, "_run", None)
    assert train_lora.run(undisturbed) == DONE
    assert "nothing to do: both files are at" in capsys.readouterr().out


def test_another_lora_is_refused(copied: LoraSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the difference, before weights are loaded; in the output as in the work folder."""
    before = files(copied)
    monkeypatch.setattr(train_lora, "_run", None)
    with pytest.raises(ValueError, match=r"rank: the folder has 4, the spec 8\n.*alpha: the folder has 2\.0"):
        train_lora.run(changed(copied, rank=8))
    with pytest.raises(ValueError, match=r"images\.drawn: the folder has"):
        train_lora.run(changed(copied, seed=1))
    shutil.rmtree(copied.lora)
    with pytest.raises(
        ValueError, match=r"out-work holds another LoRA[\s\S]*steps: the folder has 12, the spec 30"
    ):
        train_lora.run(changed(copied, steps=30))
    shutil.copytree(copied.work_folder, copied.lora)
    assert files(copied) == before


def test_a_lost_output_is_published_again(copied: LoraSpec) -> None:
    """From the work folder, without a step of training."""
    before = files(copied)
    shutil.rmtree(copied.lora)
    assert train_lora.run(copied) == DONE
    assert files(copied) == before


def test_a_lost_moderate_file_is_named(copied: LoraSpec) -> None:
    shutil.rmtree(copied.lora)
    Path(copied.work_folder, FILES[0]).unlink()
    with pytest.raises(
        ValueError, match=r"checkpoint is at step 12, but moderate\.safetensors, made at step 3, is"
    ):
        train_lora.run(copied)


def test_other_bytes_are_never_replaced(copied: LoraSpec) -> None:
    Path(copied.lora, FILES[0]).unlink()
    Path(copied.lora, FILES[1]).write_bytes(b"another run's")
    with pytest.raises(StorageError, match=r"overfitted\.safetensors is there already with other bytes"):
        train_lora.run(copied)
    assert Path(copied.lora, FILES[1]).read_bytes() == b"another run's"


def test_a_folder_of_another_origin_is_refused(copied: LoraSpec) -> None:
    """Before training: its files would be in the way at the end."""
    manifest = Path(copied.lora, MANIFEST)
    manifest.write_text("{}")
    with pytest.raises(
        ValueError, match=r"lora\.json cannot be read \(Field required\); use the release that wrote"
    ):
        train_lora.run(copied)
    manifest.unlink()
    with pytest.raises(
        ValueError, match=r"has moderate\.safetensors and overfitted\.safetensors, but no lora\.json"
    ):
        train_lora.run(copied)


def test_too_few_images_are_said_and_used(
    spec: LoraSpec, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """A dry run shows the plan and writes nothing."""
    with caplog.at_level(logging.WARNING, "gatehouse"):
        assert train_lora.run(changed(spec, images=30), dry_run=True) == DONE
    assert "1 drawn samples are bad (undecodable-image) and were left out" in caplog.text
    assert "images: the spec asks for 30, the shards have 7 good ones; training on these" in caplog.text
    assert "1 of 7 images lack what the prompt '{caption}' takes; their prompt is the fallback" in caplog.text
    shown = capsys.readouterr().out
    for expected in ("0.tar/3", "a photo", "rank 4, alpha 2", "million numbers", "each image about 3 times"):
        assert expected in shown
    assert not Path(spec.lora).exists() and not Path(spec.work_folder).exists()


def test_what_is_wrong_is_said_before_work(spec: LoraSpec, tmp_path: Path) -> None:
    transformer = {"source": str(backbones.tiny("pixart-alpha"))}
    with pytest.raises(
        ValueError, match=r"PixArtAlphaPipeline, whose network is a transformer; LoRA is trained for"
    ):
        train_lora.run(changed(spec, backbone=transformer))
    with pytest.raises(ValueError, match="no such file"):
        train_lora.run(changed(spec, input={"shards": f"{tmp_path}/none/*.tar"}))
    with pytest.raises(ValueError, match="no captions at"):
        train_lora.run(
            changed(
                spec, input=spec.input.model_dump() | {"captions": f"{tmp_path}/none", "caption_field": None}
            )
        )
    make_tar(tmp_path / "empty.tar", [])
    with pytest.raises(ValueError, match=r"found no good image in 1 shards \(no samples\)"):
        train_lora.run(changed(spec, input={"shards": f"{tmp_path}/empty.tar"}))
    assert not Path(spec.lora).exists() and not Path(spec.work_folder).exists()


def test_embedded_with_pictures(tmp_path: Path) -> None:
    """The backbone and shards that ship with the package, mirrored images, sample pictures beside the files."""
    spec = spec_of(
        tmp_path,
        tmp_path / "out",
        input={"shards": "embedded"},
        images=2,
        flip=True,
        backbone={"source": "embedded", "batch_size": 2, "dtype": "bfloat16"},
        layers="linear",
        steps=2,
        samples={"steps": 1, "prompts": ["a photo of a duck"]},
        gradient_checkpointing=True,
    )
    assert train_lora.run(spec) == DONE
    for name in ("moderate", "overfitted"):
        with Image.open(Path(spec.lora, f"{name}.png")) as picture:
            assert min(picture.size) > 100


def test_sdxl(shards: Path, tmp_path: Path) -> None:
    source = {"source": str(backbones.tiny("sdxl")), "batch_size": 2}
    spec = spec_of(shards, tmp_path / "out", backbone=source, steps=2, samples={"steps": 1})
    assert train_lora.run(spec) == DONE
    assert all(files(spec).values())


@pytest.mark.s3
def test_the_same_on_s3(
    shards: Path, undisturbed: LoraSpec, s3: BucketUrl, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a spec file; shards, backbone and output in the bucket, checkpoints in a local folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bucket = s3()
    fs, root = open_fs(bucket)
    fs.put(f"{shards}/", f"{root}/shards/", recursive=True)
    fs.put(f"{TINY}/", f"{root}/backbone/", recursive=True)
    there = changed(
        undisturbed,
        lora=f"{bucket}/lora",
        work=str(tmp_path / "work"),
        input={"shards": f"{bucket}/shards/*.tar"},
        backbone={"source": f"{bucket}/backbone", "batch_size": 2},
    )
    path = tmp_path / "spec.yaml"
    path.write_text(dump(there))
    assert train_lora.run(load(str(path), model=LoraSpec)) == DONE
    here = load_file(Path(undisturbed.lora, FILES[1]))
    (tmp_path / "fetched.safetensors").write_bytes(fs.cat_file(f"{root}/lora/{FILES[1]}"))
    fetched = load_file(tmp_path / "fetched.safetensors")
    assert all(torch.equal(fetched[key], here[key]) for key in here)


def test_the_command_hands_over(spec: LoraSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it was given; and a wrong spec is exit code 2."""
    given: list[Any] = []
    job: Any = ModuleType("jobs.train_lora")

    def run(*arguments: Any, **options: Any) -> int:
        given.append((*arguments, options))
        return 5

    job.run = run
    monkeypatch.setitem(sys.modules, "jobs.train_lora", job)
    path = tmp_path / "spec.yaml"
    path.write_text(dump(spec))
    result = CliRunner().invoke(app, ["train-lora", str(path), "--set", "steps=9", "--dry-run"])
    assert result.exit_code == 5
    assert given == [(changed(spec, steps=9), {"dry_run": True})]
    result = CliRunner().invoke(app, ["train-lora", str(path), "--set", "rank=0"])
    assert result.exit_code == 2 and "rank" in result.stderr
