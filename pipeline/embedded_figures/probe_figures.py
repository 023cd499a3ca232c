"""The probes' goals: what features give beyond pixels and chance, what noise costs, what techniques win back."""

from __future__ import annotations

from pipeline.embedded_figures.figure import Figure, Goal
from pipeline.embedded_figures.probes import (
    ALL_TAPS,
    BOTH,
    CONTROLNET,
    RAW,
    TIMES,
    TWO_GROUPS,
    TWO_SEEDS,
    UNTRAINED,
    Scores,
    best_tap,
    t_row,
)
from pipeline.embedded_figures.statistics import counted, falls, interval, paired

_UNIT = "% mIoU"
_POINTS = "points"


def figures(scores: Scores) -> list[Figure]:
    """Goals first, then every row on every tap."""
    return [*_absolute(scores), *_by_noise(scores), *_gains(scores), *_all(scores)]


def _absolute(scores: Scores) -> list[Figure]:
    tap, plain = best_tap(scores), t_row(50)
    # An untrained network is given its own best tap, not the trained one's.
    untrained = max(scores[UNTRAINED].items(), key=lambda item: item[1].mean() if item[0] != ALL_TAPS else -1)
    raw, ours = scores[RAW][RAW], scores[plain][tap]
    return [
        Figure(
            f"linear probe, {plain}, best single tap ({tap})", interval(ours), _UNIT, Goal("at least", 26)
        ),
        Figure(
            "linear probe, best single tap beside raw pixels",
            interval(ours / raw),
            "times",
            Goal("at least", 2),
        ),
        Figure(
            f"linear probe, best single tap beside the untrained network's ({untrained[0]})",
            interval(ours / untrained[1]),
            "times",
            Goal("at least", 1.8),
        ),
    ]


def _by_noise(scores: Scores) -> list[Figure]:
    """Whether noise costs accuracy; goals are those of the best single tap."""
    found, times = [], (0, *TIMES)
    for tap in (best_tap(scores), ALL_TAPS):
        values, single = [scores[t_row(t)][tap] for t in times], tap != ALL_TAPS
        steps = counted(falls([one.mean() for one in values]), len(values[0]))
        what = f"linear probe, {tap}: steps of t = {', '.join(map(str, times))} at which the mean falls"
        found.append(Figure(what, steps, "steps", Goal("at least", len(times) - 1) if single else None))
        what = f"linear probe, {tap}: t = {TIMES[0]} minus t = {TIMES[-1]}"
        found.append(
            Figure(what, paired(values[1], values[-1]), _POINTS, Goal("above", 0) if single else None)
        )
    return found


def _gains(scores: Scores) -> list[Figure]:
    """Of techniques beside plain features of the same t; goals are those of one technique on the best single tap."""
    single = best_tap(scores)
    alone = [(t_row(t, name), t_row(t)) for t in TIMES for name in ("caption", CONTROLNET)]
    together = [(t_row(t, BOTH), t_row(t)) for t in TIMES]
    together += [(TWO_SEEDS, t_row(50)), (TWO_GROUPS, t_row(50)), (TWO_GROUPS, TWO_SEEDS)]
    return [
        Figure(
            f"linear probe, {tap}: {row}, minus {'plain' if beside != TWO_SEEDS else TWO_SEEDS}",
            paired(scores[row][tap], scores[beside][tap]),
            _POINTS,
            Goal("above", 0) if tap == single and (row, beside) in alone else None,
        )
        for row, beside in [*alone, *together]
        for tap in (single, ALL_TAPS)
        if row in scores
    ]


def _all(scores: Scores) -> list[Figure]:
    return [
        Figure(
            f"linear probe, {row}" if tap == row else f"linear probe, {row}, {tap}", interval(values), _UNIT
        )
        for row, by_tap in scores.items()
        for tap, values in by_tap.items()
    ]
