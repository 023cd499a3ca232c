"""Score of a row: against features that were stored for the purpose, without a trace in what is stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import scores
from pipeline.features import Engine, Features
from pipeline.shift import relative_shift
from schemas.groups import Group
from schemas.spec import Scores
from tests.controls import write_controlnet
from tests.engines import TAPS, backbone, group, make_batch, make_engine, make_spec
from tests.loras import write_kohya

KEYS = ["a", "b", "c", "d"]
SCORED = {"output": {"dtype": "float32", "scores": {}}}
PLAIN = {"output": {"dtype": "float32"}}
CLEAN: dict[str, Any] = {"timestep": 0, "techniques": [{"type": "no-noise"}]}
WITH_SCORE = [TAPS[0], TAPS[2]]
"""At the tests' small size, the map of the other has one cell."""


def by_hand(features: Features, taps: list[str], feature: str, clean: str) -> np.ndarray:
    """Eq. 2 from stored features of the groups `anchor` and `still`, and of two that are named."""

    def shift(noisy: str, reference: str, tap: str) -> torch.Tensor:
        one, other = (torch.from_numpy(features.maps[name, tap]) for name in (noisy, reference))
        return relative_shift(one, other).double()

    found = [
        (shift("anchor", "still", tap) - shift(feature, clean, tap)) / shift("anchor", "still", tap)
        for tap in taps
    ]
    return torch.stack(found).mean(0).numpy()


def test_equals_what_stored_groups_give() -> None:
    """Of a plain group and of one with techniques, another seed, prompt and mean latents; guided, averaged, flipped."""
    guided = {"type": "guidance", "scale": 2.0}
    fields: dict[str, Any] = {"prompt": "{caption}", "seed": 3, "latents": "mean", "flip": True}
    same: dict[str, Any] = {"seed": 3, "latents": "mean", "flip": True}
    average = {"type": "average", "seeds": 2}
    features = make_engine(
        make_spec(
            group(),
            group("steered", techniques=[{"type": "denoise", "start": 53}, average, guided], **fields),
            **SCORED,
        )
    ).run(make_batch(KEYS))
    for feature, own, plain in (("plain", {}, {}), ("steered", fields, same)):
        techniques = [*CLEAN["techniques"], *([guided] if feature == "steered" else [])]
        references = [
            group("clean", **own | {"timestep": 0, "techniques": techniques}),
            group("anchor", t=200, **plain),
            group("still", **plain, **CLEAN),
        ]
        stored = make_engine(make_spec(*references, **PLAIN)).run(make_batch(KEYS))
        stored.maps |= features.maps
        expected = by_hand(stored, WITH_SCORE, feature, "clean")
        assert features.scores[feature].dtype == np.float32
        assert np.array_equal(features.scores[feature], expected.astype(np.float32))
        assert (expected < 1).all() and np.unique(expected).size == 4


def test_the_anchor_is_the_spec_s() -> None:
    output = {"dtype": "float32", "scores": {"prompt": "a bird", "anchor_t": 400}}
    found = make_engine(make_spec(group(), output=output)).run(make_batch(KEYS))
    references = [group("anchor", prompt="a bird", t=400), group("still", prompt="a bird", **CLEAN)]
    stored = make_engine(make_spec(*references, group("clean", **CLEAN), **PLAIN)).run(make_batch(KEYS))
    stored.maps |= found.maps
    expected = by_hand(stored, WITH_SCORE, "plain", "clean")
    assert np.array_equal(found.scores["plain"], expected.astype(np.float32))


GROUPS: dict[str, list[dict[str, Any]]] = {
    "plain": [group(), group("caption", prompt="{caption}", taps=TAPS[-1:])],
    "early taps": [group("early", taps=TAPS[:1]), group("attention", taps=["attn", TAPS[-1]])],
    "its own anchor": [group("at", t=200), group("still", **CLEAN), group("late", t=400, flip=True)],
    "two seeds": [group("two", techniques=[{"type": "average", "seeds": 2}])],
}


@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS)
def test_stored_features_do_not_notice(groups: list[dict[str, Any]]) -> None:
    """Byte for byte, wherever passes are shared with references."""
    batch = make_batch(KEYS)
    without = make_engine(make_spec(*groups)).run(batch)
    scored = make_engine(make_spec(*groups, output={"scores": {}})).run(batch)
    assert not without.scores and scored.scores.keys() == {one["name"] for one in groups}
    for kind in ("maps", "pooled"):
        found, expected = getattr(scored, kind), getattr(without, kind)
        assert found.keys() == expected.keys()
        assert all(values.tobytes() == expected[name].tobytes() for name, values in found.items())
    assert scored.reasons == without.reasons


def test_scores_of_the_references_themselves() -> None:
    """0 for the anchor, 1 for clean latents at timestep 0, and a stronger noise below the anchor."""
    found = make_engine(make_spec(*GROUPS["its own anchor"], **SCORED)).run(make_batch(KEYS)).scores
    assert (found["at"] == 0).all() and (found["still"] == 1).all() and (found["late"] < 0).all()


def test_tiles_and_padding() -> None:
    """Maps are laid together before they are compared."""
    tiled: dict[str, Any] = {
        "tiles": {"size": [64, 64], "overlap": 16},
        "image_size": [64, 128],
        "fit": "pad",
    }
    batch = make_batch(KEYS)
    batch.pixels = np.concatenate([batch.pixels, batch.pixels[..., ::-1]], 3)
    batch.boxes[:] = [0, 0, 64, 128]
    taps = TAPS[:1]
    groups = [group(taps=taps, flip=True)]
    references = [group("anchor", t=200, taps=taps, flip=True), group("still", taps=taps, flip=True, **CLEAN)]
    scored = make_engine(make_spec(*groups, **SCORED, **tiled)).run(batch)
    stored = make_engine(make_spec(*references, **PLAIN, **tiled)).run(batch)
    stored.maps |= scored.maps
    expected = by_hand(stored, taps, "plain", "still")
    assert np.array_equal(scored.scores["plain"], expected.astype(np.float32))


def test_references_are_shared() -> None:
    """Of three groups with one seed: a clean pass each, the plain one's is the anchor's too, and one anchor."""
    groups = [group(), group("caption", prompt="{caption}"), group("late", t=100), group("seed", seed=1)]
    engine = make_engine(make_spec(*groups, output={"scores": {}}))
    engine.run(make_batch(KEYS))
    assert engine.calls["image"] == 1
    assert engine.network_calls == engine.calls["network"] == 4 + engine.reference_calls
    assert engine.reference_calls == (2 + 1) + 2, "clean ones and an anchor of seed 0; both of seed 1"
    alone = make_engine(make_spec(group("at", t=200), group("still", **CLEAN), output={"scores": {}}))
    assert alone.reference_calls == 0, "what is stored anyway is not computed again"
    assert make_engine(make_spec(*groups)).reference_calls == 0


def test_steering_is_in_the_reference(tmp_path: Path) -> None:
    """A ControlNet's residuals scale features, which a plain reference would take for shift. The anchor has neither
    them nor a LoRA's weights, which are switched out for it."""
    source = str(write_kohya(tmp_path / "lora.safetensors", backbone().network))
    steering = [
        {"type": "controlnet", "source": write_controlnet(tmp_path / "control")},
        {"type": "lora", "source": source},
    ]
    made = scores.clean(Group.model_validate(group(techniques=[{"type": "denoise", "start": 60}, *steering])))
    assert [one.type for one in made.techniques] == ["no-noise", "controlnet", "lora"]
    engine = make_engine(make_spec(group("edges", techniques=steering), group(), **SCORED))
    found = engine.run(make_batch(KEYS))
    assert found.scores.keys() == {"plain", "edges"} and engine.reference_calls == 3
    references = [
        group("clean", **CLEAN | {"techniques": [*CLEAN["techniques"], *steering]}),
        group("anchor", t=200),
        group("still", **CLEAN),
    ]
    stored = make_engine(make_spec(*references, **PLAIN)).run(make_batch(KEYS))
    stored.maps |= found.maps
    assert np.array_equal(
        found.scores["edges"], by_hand(stored, WITH_SCORE, "edges", "clean").astype(np.float32)
    )


def test_attention_has_no_score() -> None:
    """A map of heads or tokens is no feature map, and one cell has no places; of nothing else there is no Score."""
    maps = ["mid-vit-block0-self-map", "mid-vit-block0-cross-map-mean", "attn", TAPS[1]]
    spec = make_spec(group("both", taps=[*maps, *WITH_SCORE]), group("none", taps=maps), group(), **SCORED)
    engine = make_engine(spec)
    assert [array.tap for array in engine.arrays if scores.has_score(array.tap, array.shape)] == [
        *WITH_SCORE,
        *WITH_SCORE,
    ]
    found = engine.run(make_batch(KEYS)).scores
    assert found.keys() == {"both", "plain"}
    assert found["both"].tobytes() == found["plain"].tobytes()
    recorded = {tap for one in engine.references for tap in engine._recorders[one.key].taps}
    assert recorded == set(WITH_SCORE), "nothing is recorded of references but what is compared"


def test_nothing_that_shifts_is_not_a_number() -> None:
    """A network that sees no difference between noise and none, or a map of one value."""
    still = torch.zeros(2)
    shifts = {"a": torch.tensor([0.5, 0.0])}
    assert np.isnan(scores.mean_score(shifts, {"a": still})).all()
    found = scores.mean_score(shifts | {"b": still}, {"a": torch.ones(2), "b": torch.tensor([0.0, 1.0])})
    assert np.isnan(found[0]) and found[1] == 1
    constant = {"a": torch.ones(2, 3, 4, 4)}
    measured = scores.shifts({"a": torch.randn(2, 3, 4, 4), "other": still}, constant)
    assert measured.keys() == {"a"} and np.isnan(scores.mean_score(measured, measured)).all()


@pytest.fixture(scope="module")
def engine() -> Engine:
    return make_engine(make_spec(group(), group("caption", prompt="{caption}", seed=1), **SCORED))


@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_a_score_depends_on_its_sample_alone(engine: Engine, data: st.DataObject) -> None:
    """Byte for byte in its slot, whatever is beside it."""
    slot = data.draw(st.integers(0, 3))
    alone = engine.run(make_batch([*[None] * slot, "a", *[None] * (3 - slot)])).scores
    company: list[str | None] = data.draw(st.permutations(["b", "c", "d", None]))[:3]
    company.insert(slot, "a")
    found = engine.run(make_batch(company)).scores
    assert not any(np.isnan(values[slot]) for values in found.values())
    assert all(values[slot].tobytes() == alone[name][slot].tobytes() for name, values in found.items())


def test_the_prompt_is_fixed() -> None:
    with pytest.raises(ValueError, match=r"is 'a \{caption\}'; it is one text for all samples"):
        Scores(prompt="a {caption}")
