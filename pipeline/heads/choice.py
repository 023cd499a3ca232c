"""Which of a store's arrays a head reads: feature groups of the same taps, and attention features beside them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pipeline.reader import FeatureStore
from schemas import taps as tap_names
from schemas.head import Features


@dataclass(frozen=True)
class Choice:
    """Names, and the shapes behind them."""

    groups: tuple[str, ...]
    taps: tuple[str, ...]
    """The same in every group."""
    attention: tuple[str, ...]
    """As `group/tap`."""
    shapes: Mapping[str, list[int]]
    """[C, h, w] by `group/tap`, of all that is read; [C, 1, 1] for pooled vectors."""

    @property
    def names(self) -> list[str]:
        """All that is read, as `group/tap`."""
        return list(self.shapes)


def choose(store: FeatureStore, wanted: Features, *, pooled: bool = False) -> Choice:
    """What a head reads.

    Args:
        store: where it lies.
        wanted: the spec's choice, with defaults where it says nothing.
        pooled: read pooled vectors, as maps of one cell.

    Raises:
        ValueError: a group, tap or attention feature that is not stored (names the nearest), groups without a tap in
            common, or a store without what is to be read.
    """
    _check_holds(store, pooled)
    stored = _maps(store)
    asked = set(wanted.taps or ())
    having = [group for group, taps in stored.items() if asked <= set(taps)]
    groups = tuple(wanted.groups or having or stored)
    for group in groups:
        if group not in stored:
            raise ValueError(_unknown(store, "features.groups", "feature group", group, stored))
    taps = tuple(wanted.taps or _common(store, groups, stored))
    for group in groups:
        for tap in taps:
            if tap not in stored[group]:
                raise ValueError(
                    _unknown(store, "features.taps", f"tap of group {group!r}", tap, stored[group])
                )
    for name in wanted.attention:
        maps = [one for one, layout in store.taps.items() if tap_names.kind(layout.tap) == "map"]
        if name not in maps:
            raise ValueError(_unknown(store, "features.attention", "map [C, h, w]", name, maps))
    names = [f"{group}/{tap}" for group in groups for tap in taps] + list(wanted.attention)
    shapes = {name: list(store.taps[name].shape) for name in names}
    if pooled:
        shapes = {name: [shape[0], 1, 1] for name, shape in shapes.items()}
    return Choice(groups, taps, tuple(wanted.attention), shapes)


def _check_holds(store: FeatureStore, pooled: bool) -> None:
    output = store.manifest.identity["output"]
    if not output["pooled" if pooled else "maps"]:
        has, lacks = ("maps", "pooled vectors") if pooled else ("pooled vectors", "maps")
        raise ValueError(
            f"store {store.url} holds {has} only, and this task reads {lacks}; extract with"
            f" output.{'pooled' if pooled else 'maps'}: true"
        )


def _maps(store: FeatureStore) -> dict[str, list[str]]:
    """Taps by group, of all groups that store maps whose channels are the network's own."""
    found: dict[str, list[str]] = {}
    for array in store.manifest.arrays:
        if len(array.shape) == 3 and tap_names.kind(array.tap) == "map" and not tap_names.by_token(array.tap):
            found.setdefault(array.group, []).append(array.tap)
    return found


def _common(store: FeatureStore, groups: Sequence[str], stored: Mapping[str, list[str]]) -> list[str]:
    common = (
        [tap for tap in stored[groups[0]] if all(tap in stored[group] for group in groups)] if groups else []
    )
    if not common:
        raise ValueError(
            f"store {store.url}: groups {', '.join(groups) or '(none with maps)'} have no tap in common; name some of"
            " the groups as features.groups"
        )
    return common


def _unknown(store: FeatureStore, key: str, what: str, name: str, known: Iterable[str]) -> str:
    names = list(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.3) or names[:3]
    return (
        f"{key}: store {store.url} has no {what} {name!r}; nearest of {len(names)}: {', '.join(near) or '-'}"
    )
