"""Counters that all threads may grow, seconds by stage, and the first spans."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.meter import Meter


def test_no_count_is_lost_between_threads() -> None:
    """`counter[name] += 1` alone loses some."""
    meter = Meter(spans=10)

    def work(_: int) -> None:
        for _ in range(2000):
            meter.add("images")
        with meter.stage("encode", "a.tar"):
            pass

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert meter.counters()["images"] == 16_000
    assert {span.stage for span in meter.take_spans()} == {"encode"}


def test_a_stage_that_fails_has_taken_its_time() -> None:
    meter = Meter(spans=1)
    with pytest.raises(OSError, match="refused"), meter.stage("upload", "a.tar"):
        time.sleep(0.02)
        raise OSError("refused")
    [span] = meter.take_spans()
    assert span.stage == "upload" and span.shard == "a.tar" and span.thread == "MainThread"
    assert 0.02 <= span.seconds == meter.counters()["upload_s"]
    assert abs(span.began - time.time()) < 60, "spans of several machines are laid beside each other"


def test_only_coming_by_an_item_is_timed() -> None:
    """Guards against a reader that looks slow because its batches wait in a queue."""
    meter = Meter()

    def items() -> Iterator[int]:
        for item in range(3):
            time.sleep(0.01)
            yield item

    got = []
    for item in meter.each("read", "a.tar", items()):
        time.sleep(0.1)
        got.append(item)
    assert got == [0, 1, 2]
    assert 0.03 <= meter.counters()["read_s"] < 0.3


def test_an_error_of_the_source_comes_through() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise ValueError("truncated")

    items = Meter().each("read", "a.tar", broken())
    assert next(items) == 1
    with pytest.raises(ValueError, match="truncated"):
        next(items)


def test_spans_are_bounded_and_taken_once() -> None:
    """A long job must not fill an actor's memory with its trace; seconds are counted all the same."""
    meter = Meter(spans=3)
    taken = 0
    for _ in range(5):
        with meter.stage("decode", "a.tar"):
            pass
        taken += len(meter.take_spans())
    assert taken == 3 and meter.take_spans() == []
    assert set(meter.counters()) == {"decode_s"}
