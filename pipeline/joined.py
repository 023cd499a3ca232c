"""What the original shards add to stored rows: members as they are, and labels in the frame that the network saw."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.frames import Frame
from pipeline.geometry import Fit, Size
from pipeline.labels import BadLabel, Label, Labels
from pipeline.members import MemberIndex

Line = Mapping[str, Any]
"""Of the index: shard, key, height, width."""

_AT_ONCE = 256  # samples whose members are in memory together


@dataclass(frozen=True)
class LabelCheck:
    """What a pass over all labels has found."""

    good: list[int]
    """Places whose label can be used."""
    reasons: Counter[str]
    """Of the others: see `pipeline.labels`."""
    first: str | None
    """The first of them: shard, key, reason and detail."""
    digest: str
    """Hash of the members that labels were read of, sample by sample in the order of shard and key."""


class Join:
    """Reads members and labels of the samples behind rows.

    Args:
        root: URL under which the shards lie, by their ids, or `embedded`.
        fields: members to give as they are; None for all, or for none where there are labels.
        labels: what to decode, if anything.
        image: `image_size` of the store.
        fit: of the store.
    """

    def __init__(
        self, root: str, fields: Sequence[str] | None, labels: Labels | None, image: Size, fit: Fit
    ) -> None:
        self.labels, self._image, self._fit = labels, image, fit
        self._kept: set[str] | None = None if fields is None else {field.lower() for field in fields}
        if labels is not None:
            self._kept = self._kept or set()
        self._fields = labels.fields if labels is not None else ()
        read = None if self._kept is None else sorted({*self._kept, *self._fields})
        self._members = MemberIndex(root, read)

    def read(self, lines: Sequence[Line]) -> list[dict[str, Any]]:
        """For each line `members`, unless none are wanted, and with labels `label` and `frame`.

        Raises:
            BadLabel: a label that cannot be used; see `check`.
            FileNotFoundError, KeyError, ValueError, OSError: as `MemberIndex.read`.
        """
        found = self._members.read_many([(line["shard"], line["key"]) for line in lines])
        return [self._item(line, members) for line, members in zip(lines, found, strict=True)]

    def check(self, lines: Sequence[Line]) -> LabelCheck:
        """Try every label, in the order of shards.

        Raises:
            FileNotFoundError, KeyError, ValueError, OSError: as `MemberIndex.read`.
        """
        order = sorted(range(len(lines)), key=lambda place: (lines[place]["shard"], place))
        good, reasons, first = list[int](), Counter[str](), None
        found = dict[tuple[str, str], bytes]()
        for start in range(0, len(order), _AT_ONCE):
            places = order[start : start + _AT_ONCE]
            samples = [(lines[place]["shard"], lines[place]["key"]) for place in places]
            for place, members in zip(places, self._members.read_many(samples), strict=True):
                of_label = b"".join(members.get(field, b"") for field in self._fields)
                found[lines[place]["shard"], lines[place]["key"]] = hashlib.sha256(of_label).digest()
                try:
                    self._label(lines[place], members)
                    good.append(place)
                except BadLabel as error:
                    reasons[error.reason] += 1
                    first = first or str(error)
        whole = hashlib.sha256(b"".join(found[sample] for sample in sorted(found)))
        return LabelCheck(sorted(good), reasons, first, whole.hexdigest())

    def frame(self, line: Line) -> Frame:
        """Where a row's picture lies in its image."""
        return Frame((line["height"], line["width"]), self._image, self._fit)

    def _item(self, line: Line, members: dict[str, bytes]) -> dict[str, Any]:
        item: dict[str, Any] = {}
        if self.labels is not None:
            item |= {"label": self._label(line, members), "frame": self.frame(line)}
        if self._kept is None or self._kept:
            kept = members if self._kept is None else self._kept
            item["members"] = {field: data for field, data in members.items() if field in kept}
        return item

    def _label(self, line: Line, members: dict[str, bytes]) -> Label:
        assert self.labels is not None
        try:
            return self.labels.decode(members, self.frame(line))
        except BadLabel as error:
            raise BadLabel(
                error.reason, f"{line['shard']}: sample {line['key']!r}: {error.detail}"
            ) from error
