"""Any image-to-text model of transformers captions pictures, each for itself, offline and without running code."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import BertConfig, BertModel

from pipeline.bad import BadSample
from pipeline.captioner import Captioner, Inputs, Preparation, locate, make_manifest
from schemas.captions import CaptionSpec
from tests import captioners
from tests.tars import pixels

SIZE = 4


def spec_of(source: str, **changes: Any) -> CaptionSpec:
    document = {
        "version": 1,
        "captions": "unused",
        "input": {"shards": "*.tar"},
        "model": {"source": source, "batch_size": SIZE},
        "max_new_tokens": 8,
    }
    return CaptionSpec.model_validate(document | changes)


def load(spec: CaptionSpec) -> Captioner:
    return Captioner(locate(spec), spec, "cpu")


def picture(seed: int, height: int = 40, width: int = 60) -> Image.Image:
    return Image.fromarray(pixels(height, width, seed))


@pytest.mark.parametrize(
    ("make", "prompt"),
    [
        (captioners.git, None),
        (captioners.git, "a photo of"),
        (captioners.vit_gpt2, None),
        (captioners.vit_gpt2, "a photo of"),
        (captioners.llava, "describe a photo"),
    ],
)
def test_models_of_every_make(make: Any, prompt: str | None, tmp_path: Path) -> None:
    """Captions are words, one line, without the prompt; empty slots stay empty."""
    captioner = load(spec_of(make(tmp_path), prompt=prompt))
    rows = [captioner.prepare(picture(seed)) for seed in range(3)]
    texts = captioner.caption([rows[0], None, rows[1], rows[2]])
    assert texts[1] is None
    words = [text.split() for text in texts if text is not None]
    assert all(1 <= len(text) <= 8 for text in words)
    assert all(word.startswith("word") or word in captioners._WORDS for text in words for word in text)
    assert not any(text and text.startswith(prompt or "[") for text in texts)
    assert captioner.parameters > 1000


def test_captions_tell_pictures_apart(tmp_path: Path) -> None:
    """Otherwise the tests of order and neighbours would prove nothing."""
    captioner = load(spec_of(captioners.git(tmp_path)))
    texts = [text for n in range(4) for text in captioner.caption(_rows(captioner, range(4 * n, 4 * n + 4)))]
    assert len(set(texts)) > 8


def test_the_prompt_steers(tmp_path: Path) -> None:
    source = captioners.git(tmp_path)
    plain, asked = load(spec_of(source)), load(spec_of(source, prompt="a photo of"))
    rows = [one.caption(_rows(one, range(4))) for one in (plain, asked)]
    assert rows[0] != rows[1]


def test_gits_prompt_is_left_open(tmp_path: Path) -> None:
    """Its processor would close it with [SEP], behind which the model has never gone on."""
    spec = spec_of(captioners.git(tmp_path), prompt="a photo of")
    captioner = load(spec)
    inputs = captioner.prepare(picture(1))
    assert inputs["input_ids"].tolist() == [[2, 5, 6, 7, 3]]
    ids = torch.tensor([[2, 5, 6, 7]] * SIZE)
    expected = captioner._model.generate(
        input_ids=ids,
        pixel_values=torch.cat([inputs["pixel_values"]] * SIZE),
        max_new_tokens=8,
        do_sample=False,
        num_beams=1,
    )
    words = captioner.prepare.tokenizer.decode(expected[0], skip_special_tokens=True)
    assert captioner.caption([inputs] * SIZE)[0] == words.removeprefix("a photo of").strip()


@functools.cache
def _shared() -> tuple[Captioner, list[Inputs]]:
    with tempfile.TemporaryDirectory() as folder:
        captioner = load(spec_of(captioners.git(Path(folder))))
    return captioner, _rows(captioner, range(8))


def _rows(captioner: Captioner, seeds: range) -> list[Inputs]:
    return [captioner.prepare(picture(seed)) for seed in seeds]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.one_of(st.none(), st.integers(0, 7)), min_size=SIZE, max_size=SIZE))
def test_neighbours_change_nothing(slots: list[int | None]) -> None:
    """Alone, in any company, at any slot."""
    captioner, rows = _shared()
    texts = captioner.caption([None if one is None else rows[one] for one in slots])
    for place, one in enumerate(slots):
        alone: list[Inputs | None] = [None] * SIZE
        if one is not None:
            alone[place] = rows[one]
        assert texts[place] == captioner.caption(alone)[place]


def test_greedy_whatever_the_model_would_do_by_itself(tmp_path: Path) -> None:
    """Some models ask to be sampled; captions must not be drawn."""
    source = captioners.git(tmp_path)
    settings_ = tmp_path / "generation_config.json"
    told = json.loads(settings_.read_text()) | {"do_sample": True, "temperature": 5.0, "top_k": 60}
    settings_.write_text(json.dumps(told))
    captioner = load(spec_of(source))
    rows = _rows(captioner, range(4))
    assert captioner.caption(rows) == captioner.caption(rows)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_other_dtypes(dtype: str, tmp_path: Path) -> None:
    source = captioners.git(tmp_path)
    captioner = load(spec_of(source, model={"source": source, "batch_size": SIZE, "dtype": dtype}))
    assert captioner._model.dtype == getattr(torch, dtype)
    assert all(captioner.caption(_rows(captioner, range(4))))


def test_beams(tmp_path: Path) -> None:
    captioner = load(spec_of(captioners.git(tmp_path), num_beams=3))
    assert all(captioner.caption(_rows(captioner, range(4))))


def test_proportions_that_change_shapes_are_refused_before_work(tmp_path: Path) -> None:
    source = captioners.git(tmp_path, crop=False)
    folder = Path(source)
    with pytest.raises(
        ValueError, match=r"inputs of other shapes \(pixel_values: .*set image_size, or model\.batch_size: 1"
    ):
        Preparation(folder, spec_of(source))
    prepare = Preparation(folder, spec_of(source, image_size=[32, 32]))
    assert prepare(picture(0, 20, 90))["pixel_values"].shape == (1, 3, 32, 32)
    one = Preparation(folder, spec_of(source, model={"source": source, "batch_size": 1}))
    assert one(picture(0, 20, 90))["pixel_values"].shape != one(picture(0, 90, 20))["pixel_values"].shape


def test_a_picture_that_the_processor_cannot_take_is_a_bad_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = Preparation(tmp_path, spec_of(captioners.git(tmp_path)))

    def refuse(*_: Any) -> Inputs:
        raise ValueError("absolute aspect ratio must be smaller than 200")

    monkeypatch.setattr(prepare, "_inputs", refuse)
    with pytest.raises(BadSample, match="60 x 40 pixels: absolute aspect ratio"):
        prepare(picture(0))
    monkeypatch.setattr(prepare, "_inputs", lambda *_: {"pixel_values": torch.zeros(1, 3, 8, 8)})
    with pytest.raises(BadSample, match="no inputs of one shape; set image_size"):
        prepare(picture(0))


def test_a_chat_model_must_be_asked(tmp_path: Path) -> None:
    spec = spec_of(captioners.llava(tmp_path))
    with pytest.raises(ValueError, match=r"answers to chats, so it must be asked; set prompt"):
        Preparation(tmp_path, spec)


def test_what_is_no_captioner_is_refused(tmp_path: Path) -> None:
    """Each with the model's name, what is wrong and what would help."""
    with pytest.raises(ValueError, match=r"model '.*none'"):
        locate(spec_of(str(tmp_path / "none")))
    other = tmp_path / "bert"
    BertModel(
        BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    ).save_pretrained(other)
    with pytest.raises(ValueError, match=r"its processor cannot be loaded: .*the folder must hold"):
        Preparation(other, spec_of(str(other)))
    captioners.vit_gpt2(tmp_path / "mixed")
    (tmp_path / "mixed" / "config.json").write_text((other / "config.json").read_text())
    with pytest.raises(ValueError, match=r"cannot be loaded as an image-to-text model: .*BertConfig"):
        load(spec_of(str(tmp_path / "mixed")))


def test_pickles_are_refused(tmp_path: Path) -> None:
    source = captioners.git(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"only pickled weights \(pytorch_model\.bin\)"):
        locate(spec_of(source))


def test_code_in_the_folder_is_not_run(tmp_path: Path) -> None:
    """A model that brings its own class is refused, and its module never imported."""
    source = captioners.git(tmp_path)
    ran = tmp_path / "ran"
    (tmp_path / "modeling_own.py").write_text(f"open({str(ran)!r}, 'w')\nclass Own: ...\n")
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {
        "model_type": "own",
        "auto_map": {"AutoConfig": "modeling_own.Own", "AutoModelForImageTextToText": "modeling_own.Own"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="cannot be loaded"):
        load(spec_of(source))
    assert not ran.exists()


def test_hub_ids_need_a_commit() -> None:
    with pytest.raises(ValueError, match=r"must pin it to a commit of 40 hex digits"):
        locate(spec_of("owner/name"))


def test_a_url_is_fetched_with_its_chat_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    captioners.llava(tmp_path / "model")
    (tmp_path / "model" / "training_args.bin").write_bytes(b"a pickle")
    spec = spec_of(f"file://{tmp_path}/model", prompt="describe")
    folder = locate(spec)
    assert folder.is_relative_to(tmp_path / "cache") and not (folder / "training_args.bin").exists()
    assert load(spec).caption(_rows(load(spec), range(4)))


def test_the_identity_has_all_that_a_caption_depends_on(tmp_path: Path) -> None:
    """And not where the model lies."""
    here = captioners.git(tmp_path / "here")
    there = captioners.git(tmp_path / "there")

    def fingerprint(source: str, **changes: Any) -> str:
        return make_manifest(spec_of(source, **changes), Path(source)).fingerprint

    same = fingerprint(here)
    assert fingerprint(there) == same
    assert fingerprint(here, input={"shards": "other/*.tar"}, cluster={"actors": 3}) == same
    for change in (
        {"prompt": "a"},
        {"max_new_tokens": 9},
        {"num_beams": 2},
        {"image_size": [32, 32]},
        {"model": {"source": here, "batch_size": 2}},
        {"model": {"source": here, "batch_size": SIZE, "dtype": "bfloat16"}},
        {"input": {"shards": "*.tar", "image_field": "png"}},
    ):
        assert fingerprint(here, **change) != same, change
    assert fingerprint(captioners.git(tmp_path / "other", seed=1)) != same
