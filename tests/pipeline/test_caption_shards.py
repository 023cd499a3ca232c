"""A shard becomes one file of captions: every sample has a line, good or bad, whatever the shard holds."""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.caption_shards import CaptionWorker, Outcome
from pipeline.captioner import Captioner, locate, make_manifest
from pipeline.captions import Captions, CaptionsError, open_captions
from schemas.captions import CaptionSpec, file_name
from tests import captioners
from tests.tars import encode, header, jpeg, make_tar, pixels, shard_of


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return captioners.git(tmp_path_factory.mktemp("git"))


def spec_of(model: str, out: Path, **changes: Any) -> CaptionSpec:
    document = {
        "version": 1,
        "captions": str(out),
        "input": {"shards": "*.tar"},
        "model": {"source": model, "batch_size": 4},
        "max_new_tokens": 6,
        "cluster": {"device": "cpu"},
    }
    return CaptionSpec.model_validate(document | changes)


def worker_of(spec: CaptionSpec) -> CaptionWorker:
    manifest = make_manifest(spec, locate(spec))
    open_captions(spec.captions, manifest)
    return CaptionWorker(spec, manifest, "cpu")


def lines(spec: CaptionSpec, shard: str = "0.tar") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(Path(spec.captions) / file_name(shard)).to_pylist()
    return found


def test_every_kind_of_sample_has_a_line(model: str, tmp_path: Path) -> None:
    """Bad ones with a reason; good ones are captioned as if they were alone at their slot."""
    good = jpeg(40, 60, seed=3)
    frames = [Image.fromarray(pixels(8, 8, seed)) for seed in range(2)]
    data = make_tar(
        None,
        [
            ("good.jpg", good),
            ("text.jpg", b"this is no image"),
            ("none.txt", b"a caption without an image"),
            ("good.jpg", good),
            ("moves.webp", encode(frames[0], "WEBP", save_all=True, append_images=frames[1:])),
            ("../../etc/passwd.jpg", good),
            header("link.jpg", tarfile.SYMTYPE, "/etc/passwd"),
            ("grey.png", encode(Image.new("L", (1, 1)), "PNG")),
            ("big.jpg", jpeg(100, 100)),
            ("last.jpg", good),
        ],
    )
    spec = spec_of(model, tmp_path, input={"shards": "*.tar", "max_pixels": 5000})
    worker = worker_of(spec)
    outcome = worker.run(shard_of(data, f"{tmp_path}/0.tar"))
    found = lines(spec)
    assert [(line["key"], line["position"], line["status"], line["reason"]) for line in found] == [
        ("good", 0, "ok", None),
        ("text", 1, "failed", "undecodable-image"),
        ("none", 2, "failed", "no-image"),
        ("good", 3, "failed", "duplicate-key"),
        ("moves", 4, "failed", "animated-image"),
        ("../../etc/passwd", 5, "failed", "unsafe-name"),
        ("link", 6, "failed", "link-member"),
        ("grey", 7, "ok", None),
        ("big", 8, "failed", "decompression-bomb"),
        ("last", 9, "ok", None),
    ]
    assert outcome.counts["ok"] == 3 and sum(outcome.counts.values()) == 10
    assert dict(worker.progress) == {"images": 10, "bad": 7}
    captions = Captions(spec.captions).of("0.tar")
    assert set(captions) == {"good", "grey", "last"}
    assert found[0]["sha256"] == hashlib.sha256(good).hexdigest()
    captioner = Captioner(locate(spec), spec, "cpu")
    row = captioner.prepare(Image.fromarray(pixels(40, 60, 3)).convert("RGB"))
    jpeg_row = captioner.prepare(_decoded(good))
    assert row.keys() == jpeg_row.keys()
    assert captioner.caption([jpeg_row, None, None, None])[0] == captions["good"]
    assert captioner.caption([None, jpeg_row, None, None])[1] == captions["last"]


def _decoded(data: bytes) -> Image.Image:
    from pipeline.decode import picture

    return picture(data, 10**6)


@pytest.mark.parametrize(
    ("keep", "reason", "keys"),
    [(lambda data: data[:3000], "truncated-tar", ["0"]), (lambda _: b"no tar" * 200, "not-a-tar", [])],
)
def test_a_broken_shard_is_stored_as_far_as_it_goes(
    model: str, tmp_path: Path, keep: Any, reason: str, keys: list[str]
) -> None:
    data = keep(make_tar(None, [(f"{n}.jpg", jpeg(40, 60, n)) for n in range(6)]))
    spec = spec_of(model, tmp_path)
    worker_of(spec).run(shard_of(data, f"{tmp_path}/0.tar"))
    found = lines(spec)
    assert [line["key"] for line in found] == [*keys, None]
    assert (found[-1]["position"], found[-1]["reason"]) == (len(keys), reason)
    assert list(Captions(spec.captions).of("0.tar")) == keys


def test_a_shard_without_samples(model: str, tmp_path: Path) -> None:
    spec = spec_of(model, tmp_path)
    worker = worker_of(spec)
    shard = shard_of(make_tar(None, []), f"{tmp_path}/0.tar")
    assert worker.run(shard) == Outcome({})
    assert worker.preview(shard).records == []
    assert Captions(spec.captions).of("0.tar") == {}


def test_a_model_that_says_nothing(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty caption would read as one that is there."""
    spec = spec_of(model, tmp_path)
    worker = worker_of(spec)
    monkeypatch.setattr(worker._captioner, "caption", lambda rows: ["" if row else None for row in rows])
    worker.run(shard_of(make_tar(None, [("a.jpg", jpeg(9, 9))]), f"{tmp_path}/0.tar"))
    assert [(line["caption"], line["reason"]) for line in lines(spec)] == [(None, "empty-caption")]


def test_a_preview_is_the_first_batch(model: str, tmp_path: Path) -> None:
    """With what it will hold, and nothing stored."""
    spec = spec_of(model, tmp_path)
    worker = worker_of(spec)
    shard = shard_of(make_tar(None, [(f"{n}.jpg", jpeg(40, 60, n)) for n in range(6)]), f"{tmp_path}/0.tar")
    preview = worker.preview(shard)
    assert not (tmp_path / "shards").exists()
    assert preview.parameters == worker._captioner.parameters and preview.seconds_per_image > 0
    worker.run(shard)
    stored = [line["caption"] for line in lines(spec)]
    assert [record.caption for record in preview.records] == stored[:4]


def test_another_model_on_this_machine_is_refused(model: str, tmp_path: Path) -> None:
    """Workers find the model by themselves, and a node may have something else at that path."""
    spec = spec_of(model, tmp_path / "out")
    manifest = make_manifest(spec, locate(spec))
    other = spec_of(captioners.git(tmp_path / "other", seed=1), tmp_path / "out")
    with pytest.raises(CaptionsError, match="the files found on this machine are not those"):
        CaptionWorker(other, manifest, "cpu")
