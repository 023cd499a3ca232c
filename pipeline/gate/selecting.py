"""Which techniques to combine in one feature group, and which groups to extract together.

The paper combines what suppresses content shift and extracts several features that differ (its Fig. 7): features with
little shift say more of the image, and different ones say different things. Both choices are greedy: trying every
combination would take a pass over the images for each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from pipeline.gate.decisions import estimates, verdict
from schemas.gate import PLAIN, Candidate
from schemas.groups import Group
from schemas.receipts import fingerprint
from schemas.techniques import Technique

Gains = Mapping[str, NDArray[np.floating[Any]]]
"""By candidate, its Score minus the plain feature's, [images]."""

_AND: Final = "-and-"
_LONGEST_NAME: Final = 64
_HASH: Final = 8
"""Characters of a hash that stands for names."""


@dataclass(frozen=True)
class Combinations:
    """What forward selection measured."""

    candidates: list[Candidate]
    """The combinations, in the order that they were measured in."""
    parts: dict[str, list[str]]
    """By combination, the names of the candidates in it."""


def combined(one: Candidate, other: Candidate, *, taken: Collection[str] = ()) -> Candidate | None:
    """Both together, named ONE-and-OTHER, with a hash in place of OTHER where that is too long or `taken`.

    None where they cannot be, or where it would be nothing new: their prompts differ, they share a technique, a group
    would refuse their techniques together, or one of them has all that the other has.
    """
    if None not in (one.prompt, other.prompt) and one.prompt != other.prompt:
        return None
    if any(technique in one.techniques for technique in other.techniques):
        return None
    prompt = one.prompt if one.prompt is not None else other.prompt
    techniques = [*one.techniques, *other.techniques]
    if any((prompt, techniques) == (part.prompt, part.techniques) for part in (one, other)):
        return None
    if not _fit_together(techniques):
        return None
    return Candidate(name=_name(one, other, taken), prompt=prompt, techniques=techniques)


def forward(
    candidates: Sequence[Candidate],
    gains: Gains,
    measure: Callable[[Sequence[Candidate]], Gains],
    *,
    confidence: float,
    most: int = 3,
) -> Combinations:
    """Forward selection: from the single candidate with the highest gain, adds the one that improves most.

    Only candidates that suppress by themselves are tried, as `judge` finds it; each round all that fit what is there
    already. What is added to has a mean improvement over the set before, image by image, whose interval is above 0;
    intervals hold together within a round, not over the rounds. What is measured on the images that it is chosen by
    has gains that are somewhat too high. The order of `candidates` does not matter.

    Args:
        candidates: single ones, of different names.
        gains: of each candidate, [images].
        measure: gains [images] of combinations, on the same images in the same order.
        confidence: of the intervals of a round together.
        most: candidates in one set, at least 1.

    Raises:
        ValueError: gains that have no estimate (see `estimates`), or that are of other images.
    """
    single = {one.name: one for one in candidates}
    alone = _above_zero({name: gains[name] for name in single}, confidence)
    found = Combinations([], {})
    if not alone:
        return found
    current, parts, reached = single[alone[0]], [alone[0]], gains[alone[0]]
    while len(parts) < most:
        trials: dict[str, Candidate] = {}
        for name in alone:
            taken = {*single, *found.parts, *(trial.name for trial in trials.values())}
            trial = None if name in parts else combined(current, single[name], taken=taken)
            if trial is not None:
                trials[name] = trial
        if not trials:
            break
        measured = measure(list(trials.values()))
        improvements = {
            name: _difference(trial.name, measured[trial.name], reached) for name, trial in trials.items()
        }
        found = Combinations(
            [*found.candidates, *trials.values()],
            {**found.parts, **{trial.name: [*parts, name] for name, trial in trials.items()}},
        )
        better = _above_zero(improvements, confidence)
        if not better:
            break
        current, parts = trials[better[0]], [*parts, better[0]]
        reached = measured[current.name]
    return found


def choose(
    names: Sequence[str],
    suppresses: Mapping[str, bool],
    score: Mapping[str, float],
    cost: Mapping[str, float],
    diversity: Mapping[frozenset[str], float],
    *,
    budget: float,
    most: int,
) -> list[str]:
    """Feature groups with low shift that differ: the one of the highest score, then always the farthest.

    The farthest is the one whose least diversity to those chosen is greatest; among equals the higher score, then
    the name, decides. What does not suppress, or does not fit into what is left of the budget, is left out. The order
    of `names` does not matter.

    Args:
        names: of the groups to choose from.
        suppresses: by name.
        score: by name, higher for less shift.
        cost: by name, in that of one plain group.
        diversity: of every pair of names.
        budget: for all groups together, in that of one plain group.
        most: groups to choose, at least 1.

    Returns:
        Names in the order chosen; the plain group alone where nothing that suppresses fits the budget.
    """
    chosen: list[str] = []
    left = {name for name in names if suppresses[name]}
    while len(chosen) < most:
        spent = sum(cost[name] for name in chosen)
        # What does not fit now never will.
        left = {name for name in left if spent + cost[name] <= budget}
        if not left:
            break
        away = {
            name: min((diversity[frozenset((name, other))] for other in chosen), default=0.0) for name in left
        }
        best = min(left, key=lambda name: (-away[name], -score[name], name))
        chosen.append(best)
        left.remove(best)
    return chosen or [PLAIN]


def diversity(one: NDArray[np.floating[Any]], other: NDArray[np.floating[Any]]) -> float:
    """How far two features of the same tap point in different directions, in [0, 2]; 0 for equal ones.

    1 minus the cosine between them, each channel's mean over space taken off first, averaged over images. So neither
    scale nor brightness counts. A feature that is constant over space is equal to another such, and at 1 to any else.
    For several taps, see `mean_diversity`: their mean.

    Args:
        one: [images, C, h, w], of any floating dtype.
        other: of the same images, with the same shape.

    Raises:
        ValueError: another number of axes, different shapes, no image, or a value that is not finite.
    """
    if one.shape != other.shape or one.ndim != 4 or not one.size:
        raise ValueError(
            f"features are {list(one.shape)} and {list(other.shape)}; give [images, C, h, w] of the same images and"
            " the same tap"
        )
    # Image by image, so that float64 is held of one only.
    return 1 - float(np.mean([_cosine(*pair) for pair in zip(one, other, strict=True)]))


def mean_diversity(
    one: Mapping[str, NDArray[np.floating[Any]]], other: Mapping[str, NDArray[np.floating[Any]]]
) -> float:
    """`diversity` of two features of several taps: the mean over taps, each counted alike whatever its size.

    Args:
        one: by tap, [images, C, h, w].
        other: the same taps of the same images.

    Raises:
        ValueError: as `diversity`; different taps, or none.
    """
    if one.keys() != other.keys() or not one:
        raise ValueError(f"taps are {sorted(one)} and {sorted(other)}; give the same of both, at least one")
    return float(np.mean([diversity(values, other[tap]) for tap, values in one.items()]))


def _fit_together(techniques: list[Technique]) -> bool:
    """Whether a group takes them; it alone knows which may come together."""
    try:
        Group(name="combined", taps="legacy", t=1, techniques=techniques)
    except ValidationError:
        return False
    return True


def _name(one: Candidate, other: Candidate, taken: Collection[str]) -> str:
    joined = f"{one.name}{_AND}{other.name}"
    if len(joined) <= _LONGEST_NAME and joined not in taken:
        return joined
    content = {"one": one.model_dump(mode="json"), "other": other.model_dump(mode="json")}
    start = one.name[: _LONGEST_NAME - len(_AND) - _HASH]
    return f"{start}{_AND}{fingerprint(content)[:_HASH]}"


def _above_zero(values: Gains, confidence: float) -> list[str]:
    """Those whose mean's interval is above 0, the highest mean first, equal ones by name."""
    found = estimates(values, confidence=confidence)
    names = [name for name, estimate in found.items() if verdict(estimate) == "suppresses"]
    return sorted(names, key=lambda name: (-found[name].mean, name))


def _difference(
    name: str, values: NDArray[np.floating[Any]], beside: NDArray[np.floating[Any]]
) -> NDArray[np.floating[Any]]:
    # NumPy would lay a single value beside all others.
    if values.shape != beside.shape:
        raise ValueError(
            f"{name!r} has gains {list(values.shape)} beside {list(beside.shape)}; measure all on the same images"
        )
    return values - beside


def _cosine(one: NDArray[np.floating[Any]], other: NDArray[np.floating[Any]]) -> float:
    """Of two maps [C, h, w] without their means over space, in [-1, 1]."""
    first, second = _centred(one), _centred(other)
    squares = float(first @ first), float(second @ second)
    if 0.0 in squares:
        return float(squares[0] == squares[1])
    return float(np.clip(float(first @ second) / math.sqrt(squares[0] * squares[1]), -1, 1))


def _centred(maps: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """[C * h * w], scaled to a largest value of 1, so that no square leaves float64's range."""
    exact = maps.astype(np.float64)
    if not np.isfinite(exact).all():
        raise ValueError("features have values that are not finite; leave those images out")
    # First the difference to one place, which is exactly 0 where a channel is constant, as that to a mean is not.
    exact -= exact[:, :1, :1].copy()
    exact -= exact.mean((1, 2), keepdims=True)
    largest = float(abs(exact).max())
    return (exact / largest if largest else exact).ravel()
