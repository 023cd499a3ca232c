"""Combinations that fit together and improve, and groups within a budget that differ."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import TypeAdapter

from pipeline.gate.selecting import Combinations, choose, combined, diversity, forward, mean_diversity
from schemas.gate import Candidate
from schemas.groups import Group
from schemas.techniques import Technique

EDGES: dict[str, Any] = {"type": "controlnet", "source": "./canny"}
LORA: dict[str, Any] = {"type": "lora", "source": "./a.safetensors"}
IP_ADAPTER: dict[str, Any] = {"type": "ip-adapter", "source": "./a.safetensors", "image_encoder": "./clip"}
TECHNIQUES: list[dict[str, Any]] = [
    EDGES,
    {**EDGES, "scale": 0.5},
    LORA,
    {"type": "denoise", "start": 60},
    {"type": "denoise", "start": 70},
    {"type": "average", "seeds": 2},
    {"type": "inversion"},
    {"type": "no-noise"},
    {"type": "guidance", "scale": 2.0},
    IP_ADAPTER,
]
IMAGES = 12
Gains = dict[str, NDArray[np.float64]]


def candidate(name: str, *techniques: dict[str, Any], prompt: str | None = None) -> Candidate:
    built = [TypeAdapter[Technique](Technique).validate_python(technique) for technique in techniques]
    return Candidate(name=name, prompt=prompt, techniques=built)


@st.composite
def candidates(draw: st.DrawFn) -> Candidate:
    """With names as long as they may be, and techniques that may not come together."""
    return candidate(
        draw(st.text("ab-", min_size=1, max_size=64).map(lambda name: "a" + name[1:])),
        *draw(st.lists(st.sampled_from(TECHNIQUES), max_size=3)),
        prompt=draw(st.sampled_from([None, "a photo", "{caption}"])),
    )


def loras(*names: str) -> list[Candidate]:
    """Candidates that all fit together."""
    return [candidate(name, {**LORA, "source": f"./{name}.safetensors"}) for name in names]


@settings(deadline=None)
@given(candidates(), candidates())
def test_combinations_are_groups(one: Candidate, other: Candidate) -> None:
    """Whatever comes out can be extracted, and is more than either."""
    found = combined(one, other)
    assert found == combined(one, other)
    if found is not None:
        group = Group(
            name=found.name, taps="legacy", t=50, prompt=found.prompt or "", techniques=found.techniques
        )
        assert group.techniques == [*one.techniques, *other.techniques]
        assert {one.prompt, other.prompt} - {None} == {found.prompt} - {None}
        assert all(
            (found.prompt, found.techniques) != (part.prompt, part.techniques) for part in (one, other)
        )


@settings(deadline=None)
@given(candidates(), candidates())
def test_combining_fits_both_ways(one: Candidate, other: Candidate) -> None:
    assert (combined(one, other) is None) == (combined(other, one) is None)


def test_both_together() -> None:
    caption, edges = candidate("caption", prompt="{caption}"), candidate("edges", EDGES)
    assert combined(caption, edges) == candidate("caption-and-edges", EDGES, prompt="{caption}")
    assert combined(edges, caption) == candidate("edges-and-caption", EDGES, prompt="{caption}")
    lora = candidate("lora", LORA, prompt="{caption}")
    assert combined(lora, caption) is None, "it has the prompt already"
    both = combined(lora, candidate("fine", EDGES, prompt="{caption}"))
    assert both == candidate("lora-and-fine", LORA, EDGES, prompt="{caption}")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (candidate("a", EDGES, prompt="a photo"), candidate("b", LORA, prompt="{caption}")),
        (candidate("a", EDGES), candidate("b", LORA, EDGES)),
        (candidate("a", {"type": "denoise", "start": 60}), candidate("b", {"type": "denoise", "start": 70})),
        (
            candidate("a", {"type": "guidance", "scale": 2.0}),
            candidate("b", {"type": "guidance", "scale": 3.0}),
        ),
        (candidate("a", {"type": "average", "seeds": 2}), candidate("b", {"type": "average", "seeds": 3})),
        (candidate("a", {"type": "inversion", "steps": 5}), candidate("b", {"type": "inversion"})),
        (candidate("a", IP_ADAPTER), candidate("b", {**IP_ADAPTER, "scale": 0.5})),
        (candidate("a", {"type": "inversion"}), candidate("b", {"type": "no-noise"})),
        (candidate("a", {"type": "inversion"}), candidate("b", {"type": "average", "seeds": 2})),
        (candidate("a", prompt="a photo"), candidate("b", prompt="a photo")),
    ],
)
def test_what_does_not_combine(one: Candidate, other: Candidate) -> None:
    """Guards against combinations that the group's own check refuses, after hours of measuring."""
    assert combined(one, other) is None


@pytest.mark.parametrize("lengths", [(29, 30), (29, 31), (64, 1), (64, 64)])
def test_long_names(lengths: tuple[int, int]) -> None:
    """As long as names may be, and another for another content."""
    one, other = candidate("a" * lengths[0], EDGES), candidate("b" * lengths[1], LORA)
    found, changed = combined(one, other), combined(one, candidate(other.name, {**LORA, "scale": 0.5}))
    assert found is not None and changed is not None and len(found.name) <= 64
    if sum(lengths) + 5 <= 64:
        assert found.name == f"{one.name}-and-{other.name}"
    else:
        assert found.name.startswith(one.name[:51] + "-and-") and found.name != changed.name


def test_a_name_that_is_taken() -> None:
    one, other = loras("a", "b")
    found = combined(one, other, taken=["a-and-b"])
    assert found is not None and found.name.startswith("a-and-") and found.name != "a-and-b"


class Measure:
    """Gains of combinations, each image alike but for a small noise: the sum of what each candidate's LoRA is worth."""

    def __init__(self, worth: dict[str, float], together: float = 1.0) -> None:
        self.worth = worth
        self.together = together
        self.rounds: list[list[str]] = []

    def of(self, one: Candidate) -> NDArray[np.float64]:
        sources = [technique.source for technique in one.techniques if technique.type == "lora"]
        parts = [self.worth[source.removeprefix("./").removesuffix(".safetensors")] for source in sources]
        noise = np.random.default_rng([*map(ord, "".join(sorted(sources)))]).normal(0, 0.01, IMAGES)
        return (parts[0] if len(parts) == 1 else sum(parts) * self.together) + noise

    def __call__(self, candidates: Sequence[Candidate]) -> Gains:
        self.rounds.append([one.name for one in candidates])
        return {one.name: self.of(one) for one in candidates}


def selected(measure: Measure, singles: Sequence[Candidate], most: int = 3) -> Combinations:
    gains = {one.name: measure.of(one) for one in singles}
    return forward(singles, gains, measure, confidence=0.95, most=most)


def test_adds_what_improves_most() -> None:
    """Until the largest set; what has no effect or harms is never tried."""
    measure = Measure({"a": 0.2, "b": 0.5, "c": 0.3, "none": 0.0, "worse": -0.4, "d": 0.1})
    found = selected(measure, loras(*measure.worth))
    assert measure.rounds == [["b-and-c", "b-and-a", "b-and-d"], ["b-and-c-and-a", "b-and-c-and-d"]]
    assert [one.name for one in found.candidates] == [*itertools.chain(*measure.rounds)]
    assert found.parts["b-and-c-and-d"] == ["b", "c", "d"] and found.parts["b-and-a"] == ["b", "a"]
    assert list(found.parts) == [*itertools.chain(*measure.rounds)]


def test_stops_where_nothing_improves() -> None:
    """Together they are worth less than the best alone: measured once, and not kept."""
    measure = Measure({"a": 0.2, "b": 0.5, "c": 0.1}, together=0.5)
    selected(measure, loras("a", "b", "c"))
    assert measure.rounds == [["b-and-a", "b-and-c"]]


@pytest.mark.parametrize("worth", [{"a": 0.0, "b": -0.5}, {"a": 0.5, "b": -0.5}, {}])
def test_nothing_to_combine(worth: dict[str, float]) -> None:
    measure = Measure(worth)
    found = selected(measure, loras(*worth))
    assert measure.rounds == [] and found.candidates == [] and found.parts == {}


def test_only_what_fits_is_measured() -> None:
    """Two prompts exclude each other."""
    fine, caption = candidate("fine", prompt="sharp"), candidate("caption", prompt="{caption}")
    (lora,) = loras("a")
    gains = {"fine": np.full(IMAGES, 0.3), "caption": np.full(IMAGES, 0.2), "a": np.full(IMAGES, 0.1)}
    asked: list[Candidate] = []

    def measure(combinations: Sequence[Candidate]) -> Gains:
        asked.extend(combinations)
        return {one.name: np.full(IMAGES, 0.5) for one in combinations}

    found = forward([lora, caption, fine], gains, measure, confidence=0.95)
    assert asked == found.candidates == [combined(fine, lora)] and found.parts == {
        "fine-and-a": ["fine", "a"]
    }


def test_an_improvement_is_judged_image_by_image() -> None:
    """It is far less than images differ by: two intervals beside each other would not show it."""
    spread = np.random.default_rng(0).gamma(2, 1, IMAGES)
    gains = {"a": spread, "b": spread / 2, "c": spread / 3}

    def measure(combinations: Sequence[Candidate]) -> Gains:
        return {combination.name: spread + 0.05 for combination in combinations}

    found = forward(loras(*gains), gains, measure, confidence=0.95)
    assert [*found.parts] == ["a-and-b", "a-and-c", "a-and-b-and-c"]


def test_names_stay_apart() -> None:
    """Guards against a combination that takes the place of a candidate which has its name."""
    measure = Measure({"a": 0.5, "b": 0.2, "a-and-b": -1.0})
    found = selected(measure, loras("a", "b", "a-and-b"))
    assert [*found.parts.values()] == [["a", "b"]] and "a-and-b" not in found.parts


@settings(deadline=None, max_examples=30)
@given(
    st.dictionaries(
        st.sampled_from("abcde"), st.integers(-10, 10).filter(bool).map(lambda tenths: tenths / 10)
    ),
    st.floats(0.5, 1.2),
    st.integers(1, 4),
    st.randoms(use_true_random=False),
)
def test_order_of_candidates(worth: dict[str, float], together: float, most: int, random: Random) -> None:
    """Does not matter, nor is any set larger than allowed."""
    singles, measure, again = loras(*worth), Measure(worth, together), Measure(worth, together)
    found = selected(measure, singles, most)
    random.shuffle(singles)
    other = selected(again, singles, most)
    assert (found.candidates, found.parts) == (other.candidates, other.parts)
    assert all(len(parts) <= most for parts in found.parts.values())


def test_gains_of_other_images() -> None:
    """NumPy would lay a single image beside all others."""
    gains = {name: np.full(IMAGES, 0.5) for name in "ab"}
    with pytest.raises(ValueError, match=r"'a-and-b' has gains \[1\] beside \[12\]"):
        forward(loras("a", "b"), gains, lambda _: {"a-and-b": np.ones(1)}, confidence=0.95)


def distances(**pairs: float) -> dict[frozenset[str], float]:
    """By pair of names of one letter."""
    return {frozenset(pair): value for pair, value in pairs.items()}


def chosen(
    score: dict[str, float],
    far: dict[frozenset[str], float],
    *,
    budget: float = 9,
    most: int = 9,
    suppresses: str | None = None,
    cost: dict[str, float] | None = None,
) -> list[str]:
    """Of groups that all suppress and cost one plain group, unless said otherwise."""
    return choose(
        list(score),
        {name: suppresses is None or name in suppresses for name in score},
        score,
        cost or dict.fromkeys(score, 1.0),
        far,
        budget=budget,
        most=most,
    )


FAR = distances(ab=0.1, ac=0.8, bc=0.7, ad=0.5, bd=0.4, cd=0.2)
SCORES = {"a": 0.5, "b": 0.4, "c": 0.3, "d": 0.2}


def test_farthest_first() -> None:
    """`b` has the second score, but is almost `a`; `d` is almost `c`, though far from `a`."""
    assert chosen(SCORES, FAR) == ["a", "c", "d", "b"]
    assert chosen(SCORES, FAR, most=2) == ["a", "c"]
    assert chosen(SCORES, FAR, budget=3.5) == ["a", "c", "d"]


def test_only_what_suppresses() -> None:
    assert chosen(SCORES, FAR, suppresses="bd") == ["b", "d"]
    assert chosen(SCORES, FAR, suppresses="") == ["plain"]
    assert chosen({}, {}) == ["plain"]


def test_what_does_not_fit_is_passed_over() -> None:
    """At first and later; others may still fit."""
    assert chosen(SCORES, FAR, budget=3, cost={"a": 4, "b": 2, "c": 2, "d": 1}) == ["b", "d"]
    assert chosen(SCORES, FAR, budget=0.5) == ["plain"]


def test_equal_ones() -> None:
    """The higher score decides, then the name."""
    far = distances(ab=0.5, ac=0.5, bc=0.5)
    assert chosen({"c": 0.1, "b": 0.1, "a": 0.1}, far) == ["a", "b", "c"]
    assert chosen({"c": 0.3, "a": 0.1, "b": 0.2}, far) == ["c", "b", "a"]


@settings(deadline=None)
@given(st.data(), st.integers(0, 5), st.floats(0.1, 10), st.integers(1, 5))
def test_within_the_limits(data: st.DataObject, count: int, budget: float, most: int) -> None:
    """Of money and number, whatever the order; nothing that still fits is left out."""
    names = list("abcde"[:count])
    numbers = st.floats(0, 3)
    score, cost = ({name: data.draw(numbers) for name in names} for _ in range(2))
    suppresses = {name: data.draw(st.booleans()) for name in names}
    far = {frozenset(pair): data.draw(numbers) for pair in itertools.combinations(names, 2)}
    found = choose(names, suppresses, score, cost, far, budget=budget, most=most)
    assert found == choose(names[::-1], suppresses, score, cost, far, budget=budget, most=most)
    fitting = [name for name in names if suppresses[name] and cost[name] <= budget]
    if not fitting:
        assert found == ["plain"]
        return
    assert found[0] in fitting and score[found[0]] == max(score[name] for name in fitting)
    assert len(set(found)) == len(found) <= most and all(suppresses[name] for name in found)
    spent = sum(cost[name] for name in found)
    assert spent <= budget
    if len(found) < most:
        assert all(spent + cost[name] > budget for name in fitting if name not in found)


@st.composite
def features(draw: st.DrawFn, shape: tuple[int, ...] = (2, 3, 4, 4)) -> NDArray[np.float64]:
    """Of any magnitude that features have."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return rng.standard_normal(shape) * 10.0 ** draw(st.integers(-3, 3))


@settings(deadline=None)
@given(features(), features(), st.floats(1e-3, 1e3), st.floats(-1e3, 1e3))
def test_diversity(one: NDArray[np.float64], other: NDArray[np.float64], scale: float, offset: float) -> None:
    """Symmetric and in [0, 2]; neither scale nor brightness counts."""
    found = diversity(one, other)
    assert 0 <= found <= 2 and found == pytest.approx(diversity(other, one), abs=1e-12)
    assert diversity(one, one.copy()) == pytest.approx(0, abs=1e-12)
    assert diversity(one, -one) == pytest.approx(2, abs=1e-12)
    assert diversity(one, other * scale) == pytest.approx(found, abs=1e-9)
    brighter = other + offset * abs(other).max() * np.arange(1, 4)[:, None, None]
    assert diversity(one, brighter) == pytest.approx(found, abs=1e-9)


def test_diversity_by_hand() -> None:
    """An image that is equal, and one whose pattern is orthogonal: images count alike, whatever their size."""
    stripes = np.array([[1.0, -1.0], [1.0, -1.0]])
    one = np.stack([100 * stripes, stripes])[:, None]
    other = np.stack([stripes, stripes.T])[:, None]
    assert diversity(one, other) == pytest.approx(0.5)
    assert diversity(one.astype(np.float16), other.astype(np.float16)) == pytest.approx(0.5)


def test_diversity_of_constant_maps() -> None:
    """Exactly: the rounding of their means has no direction."""
    constant, pattern = np.full((1, 2, 5, 5), 0.1), np.arange(50.0).reshape(1, 2, 5, 5)
    assert diversity(constant, 7 * constant) == 0
    assert diversity(constant, pattern) == diversity(pattern, constant) == 1


def test_diversity_of_taps() -> None:
    """A tap of few values counts as much as one of many."""
    rng = np.random.default_rng(0)
    small, large = rng.normal(size=(2, 1, 2, 2)), rng.normal(size=(2, 8, 6, 6))
    assert mean_diversity({"a": small, "b": large}, {"b": large, "a": -small}) == pytest.approx(1)


@pytest.mark.parametrize(
    ("one", "other"), [((2, 3, 4, 4), (1, 3, 4, 4)), ((3, 4, 4), (3, 4, 4)), ((0, 3, 4, 4), (0, 3, 4, 4))]
)
def test_what_has_no_diversity(one: tuple[int, ...], other: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="of the same images and the same tap"):
        diversity(np.zeros(one), np.zeros(other))


def test_values_that_are_not_finite() -> None:
    """Guards against a NaN that wins or loses every comparison of `choose`."""
    maps = np.zeros((1, 1, 2, 2))
    maps[..., 0] = np.inf
    with pytest.raises(ValueError, match="values that are not finite"):
        diversity(np.zeros((1, 1, 2, 2)), maps)


def test_other_taps() -> None:
    maps = np.zeros((1, 1, 2, 2))
    with pytest.raises(ValueError, match=r"taps are \['a'\] and \['b'\]; give the same"):
        mean_diversity({"a": maps}, {"b": maps})
    with pytest.raises(ValueError, match="at least one"):
        mean_diversity({}, {})
