"""The whole job on a few images: what it writes, what it refuses, and that extraction takes what it selected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jobs import gate
from jobs.endings import DONE
from pipeline.gate import workers
from pipeline.reader import FeatureStore
from pipeline.storage import names as storage_names
from pipeline.storage import open_fs
from schemas.gate import PLAIN, REPORT, SELECTION, GateSpec, Selection
from schemas.groups import Group
from schemas.specfile import load
from tests.conftest import BucketUrl

CANNY = {"type": "controlnet", "source": "embedded/controlnet-canny"}
CANDIDATES = [
    {"name": "caption", "prompt": "{caption}"},
    {"name": "controlnet", "techniques": [CANNY]},
    {"name": "clean", "techniques": [{"type": "no-noise"}]},
]


def spec(out: Path, **fields: Any) -> GateSpec:
    given = {
        "version": 1,
        "out": str(out),
        "input": {"shards": "embedded"},
        "image_size": [64, 64],
        "backbone": {"batch_size": 4},
        "images": 6,
        "times": [50],
        "candidates": CANDIDATES,
        "img2img": {"images": 2, "steps": 3},
    }
    return GateSpec.model_validate(given | fields)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gate")
    assert gate.run(spec(folder), serial=True) == DONE
    return folder


@pytest.fixture(scope="module")
def selection(out: Path) -> Selection:
    return Selection.model_validate_json((out / SELECTION).read_bytes())


def test_every_candidate_is_judged(selection: Selection) -> None:
    by_name = {one.name: one for one in selection.judged}
    assert list(by_name)[:3] == ["caption", "controlnet", "clean"]
    assert len(selection.images) == 6
    for one in selection.judged:
        assert set(one.gain) == {"literal", "own", "shape"}
        assert all(gain.low <= gain.mean <= gain.high for gain in one.gain.values())
        assert one.cost > 0
    assert set(by_name["controlnet"].similarity or {}) == {"edge_agreement", "ssim", "colour"}
    assert by_name["clean"].similarity is None, "it is about the noise that a feature starts from"


def test_only_what_suppresses_is_selected(selection: Selection) -> None:
    suppressing = {one.name for one in selection.judged if one.verdict == "suppresses"}
    names = {one["name"] for one in selection.groups}
    assert names <= suppressing if suppressing else names == {PLAIN}
    assert all(Group.model_validate(one).t == 50 for one in selection.groups)


def test_the_report_stands_by_itself(out: Path) -> None:
    page = (out / REPORT).read_text()
    assert "clean was not repainted" in page
    assert "embedded/controlnet-canny" in page, "the spec that gives it again"
    assert "http" not in page.replace("http-equiv", "")


def test_extraction_takes_the_selection(out: Path, selection: Selection, tmp_path: Path) -> None:
    from jobs import extract

    path = tmp_path / "spec.yaml"
    document = {
        "version": 1,
        "store": str(tmp_path / "store"),
        "input": {"shards": "embedded"},
        "image_size": [64, 64],
        "backbone": {"source": "embedded"},
        "groups": str(out / SELECTION),
    }
    path.write_text(json.dumps(document))
    assert extract.run(load(str(path)), limit=3, serial=True) == DONE
    store = FeatureStore(str(tmp_path / "store"))
    assert list(store.manifest.groups) == [one["name"] for one in selection.groups]


def test_the_same_findings_again(out: Path, selection: Selection, tmp_path: Path) -> None:
    """On Ray, in other processes: costs differ, nothing else does."""
    assert gate.run(spec(tmp_path, candidates=CANDIDATES[:1], img2img=None)) == DONE
    again = Selection.model_validate_json((tmp_path / SELECTION).read_bytes())
    assert again.images == selection.images
    first, second = (one.judged[0].gain["own"].mean for one in (selection, again))
    assert second == pytest.approx(first, rel=1e-3)
    assert "The guidelines were not compared" in (tmp_path / REPORT).read_text()


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gate.run(spec(tmp_path / "out"), dry_run=True) == DONE
    assert "6 images, t = 50, 200; judged at t = 50" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("candidate", "message"),
    [
        (
            {"name": "x", "techniques": [{"type": "lora", "source": "gone.safetensors"}]},
            r"candidate 'x': .*gone\.safetensors.*no such file",
        ),
        (
            {"name": "x", "techniques": [{"type": "denoise", "start": 50}]},
            r"candidate 'x': it denoises from no more noise than t = 50; start above",
        ),
        (
            {"name": "x", "techniques": [CANNY | {"source": "embedded/backbone/vae"}]},
            r"candidate 'x': ",
        ),
    ],
)
def test_a_candidate_that_cannot_be_measured_is_named(
    candidate: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        gate.run(spec(tmp_path, candidates=[candidate]), serial=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"taps": "up-level9-out"}, r"candidate 'plain': .*up-level9-out"),
        ({"taps": "attn"}, r"taps: none of attn has a Score; name some"),
        ({"image_size": [64, 60]}, r"image_size"),
        (
            {"input": {"shards": "embedded", "caption_field": None}},
            r"candidate 'caption': a group's prompt has \{caption\}, but input\.caption_field is null",
        ),
    ],
)
def test_what_is_wrong_is_said_before_any_work(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        gate.run(spec(tmp_path, **fields), serial=True)
    assert list(tmp_path.iterdir()) == []


def test_default_candidates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gate.run(spec(tmp_path, candidates=None), dry_run=True) == DONE
    told = capsys.readouterr().out
    for name in ("caption", "quality", "controlnet", "lora-moderate", "lora-overfitted", "guidance"):
        assert name in told


def test_to_s3(s3: BucketUrl) -> None:
    url = s3()
    made = spec(Path("x"), candidates=CANDIDATES[:1], img2img=None, images=2).model_copy(update={"out": url})
    assert gate.run(made, serial=True) == DONE
    fs, root = open_fs(url)
    assert Selection.model_validate_json(fs.cat_file(f"{root}/{SELECTION}")).usable == 2
    assert storage_names(fs, root) == [REPORT, SELECTION]


def test_what_a_task_raises_is_raised() -> None:
    from schemas.spec import Cluster

    ray_workers = workers.RayWorkers(Cluster())
    try:
        assert ray_workers.map(max, [(1, 2), (5, 1), (0, 0), (9, 9)], 3) == [3, 5, 3, 9]
        with pytest.raises(ZeroDivisionError):
            ray_workers.map(divmod, [(1,), (2,)], 0)
    finally:
        ray_workers.close()
