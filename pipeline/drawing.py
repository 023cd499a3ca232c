"""A few good samples, drawn from shards by a seed.

All samples of the shards that are looked into have the same chance. Of very many shards no more are looked into than
samples are asked for, since each must be read to count its samples; more only where too few of them are good.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

import numpy as np

from pipeline.bad import BadSample, BadShard
from pipeline.shards import Sample, Shard, count_samples, read_shard
from schemas.spec import Input

T = TypeVar("T")


class Drawing(Generic[T]):
    """Draws samples, and counts those that were drawn, are bad, and gave way to others.

    Args:
        spec: where image and caption are in a sample.
        make: what is wanted of a sample; raises BadSample where it cannot be had.
        controls: tar extensions of images to read besides.
        json_fields: fields of the json member to read besides.
    """

    def __init__(
        self,
        spec: Input,
        make: Callable[[Shard, Sample], T],
        *,
        controls: Sequence[str] = (),
        json_fields: Sequence[str] = (),
    ) -> None:
        self._spec, self._make = spec, make
        self._controls, self._json_fields = controls, json_fields
        self.bad: Counter[str] = Counter()
        """By reason."""

    def draw(self, shards: Sequence[Shard], count: int, seed: int) -> list[T]:
        """So many good ones, or all there are, by shard and place in it.

        Raises:
            ValueError: no good one at all.
            OSError: storage failed.
        """
        random, found = np.random.default_rng(seed), dict[tuple[str, int], T]()
        order = [shards[place] for place in random.permutation(len(shards))]
        for first in range(0, len(order), count):
            part = order[first : first + count]
            places = [(shard, place) for shard in part for place in range(count_samples(shard, self._spec))]
            random.shuffle(places)
            while places and (lacking := count - len(found)):
                chosen, places = places[:lacking], places[lacking:]
                found |= self._read(chosen)
            if len(found) == count:
                break
        if not found:
            told = ", ".join(f"{count} {reason}" for reason, count in self.bad.most_common()) or "no samples"
            raise ValueError(
                f"input.shards: found no good image in {len(shards)} shards ({told}); give shards with images"
            )
        return [found[place] for place in sorted(found)]

    def _read(self, chosen: Sequence[tuple[Shard, int]]) -> dict[tuple[str, int], T]:
        """The good ones of some places in shards, by (shard id, place)."""
        by_shard: dict[Shard, set[int]] = defaultdict(set)
        for shard, place in chosen:
            by_shard[shard].add(place)
        found = {}
        for shard, places in by_shard.items():
            for sample in self._samples(shard, places):
                try:
                    found[shard.id, sample.index] = self._make(shard, sample)
                except BadSample as error:
                    self.bad[error.reason] += 1
        return found

    def _samples(self, shard: Shard, places: set[int]) -> Iterator[Sample]:
        """Those at some places; what lies behind a fault of the tar is counted as bad."""
        left = set(places)
        try:
            for sample in read_shard(shard, self._spec, self._controls, self._json_fields):
                if sample.index in left:
                    left.remove(sample.index)
                    yield sample
                if not left:
                    return
        except BadShard as error:
            self.bad[error.reason] += len(left)
