"""Where two identities differ, and how that is told."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def differences(old: Any, new: Any, key: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted key, old value, new value) of every leaf that differs in two trees of dictionaries and lists."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in dict.fromkeys([*old, *new]):
            yield from differences(old.get(name), new.get(name), f"{key}.{name}".lstrip("."))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for place, pair in enumerate(zip(old, new, strict=True)):
            yield from differences(*pair, f"{key}.{place}")
    elif old != new:
        yield key, old, new


def told(old: Any, new: Any, where: str) -> str:
    """A line for each difference between what `where` has and the spec; nothing if there is none."""
    found = differences(old, new)
    return "\n".join(
        f"  {key}: the {where} has {before!r}, the spec {after!r}" for key, before, after in found
    )
