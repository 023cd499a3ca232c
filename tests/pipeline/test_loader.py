"""One order for any number of ranks and workers, and resumed where it was left."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import FeatureDataset, FeatureLoader, FeatureStore
from pipeline.labels import BadLabel
from pipeline.order import epoch_order
from pipeline.read_ahead import collate
from pipeline.storage import open_fs
from tests.conftest import BucketUrl
from tests.stores import TAPS

NAMES = [f"plain/{tap}" for tap in TAPS]


class Numbers:
    """Items that know their place, in blocks of three."""

    def __init__(self, n: int, fingerprint: str = "numbers") -> None:
        self.n, self.fingerprint = n, fingerprint
        self.blocks = np.arange(n) // 3
        self.reads: list[list[int]] = []

    def __len__(self) -> int:
        return self.n

    def __getitems__(self, items: Sequence[int], /) -> list[dict[str, Any]]:
        self.reads.append(list(items))
        return [{"value": torch.full((2, 2), float(item)), "key": item} for item in items]


def keys(loader: FeatureLoader, batches: int | None = None) -> list[list[int]]:
    """Of each batch of what is left of an epoch, or of the next few."""
    found = []
    for batch in islice(loader, batches):
        assert batch["value"].shape == (len(batch["key"]), 2, 2)
        assert batch["value"][:, 0, 0].tolist() == batch["key"]
        found.append(batch["key"])
    return found


def joined(parts: Sequence[list[list[int]]]) -> list[list[int]]:
    """The global batches of ranks' parts."""
    assert len({len(part) for part in parts}) == 1, "a rank with fewer batches leaves the others waiting"
    return [[key for rank in step for key in rank] for step in zip(*parts, strict=True)]


SETTINGS = st.fixed_dictionaries(
    {"shuffle": st.booleans(), "window": st.none() | st.integers(1, 5), "drop_last": st.booleans()}
)
AHEAD = st.none() | st.integers(1, 4)


@settings(deadline=None)
@given(st.integers(0, 30), st.integers(1, 5), st.integers(0, 9), SETTINGS, AHEAD)
def test_ranks_share_an_epoch(n: int, ranks: int, more: int, how: dict[str, Any], ahead: int | None) -> None:
    """Nothing twice, nothing lost, and each global batch as one rank alone would have it."""
    size = ranks + more
    loaders = [
        FeatureLoader(Numbers(n), size, rank=rank, ranks=ranks, seed=5, read_ahead=ahead, **how)
        for rank in range(ranks)
    ]
    for epoch in range(2):
        order = range(n) if not how["shuffle"] else epoch_order(np.arange(n) // 3, 5, epoch, how["window"])[0]
        whole = n // size * size if how["drop_last"] else n
        expected = [[int(key) for key in order[at : min(at + size, n)]] for at in range(0, whole, size)]
        parts = [keys(loader) for loader in loaders]
        assert joined(parts) == expected
        assert all(len(loader) == len(expected) for loader in loaders)
        for step in zip(*parts, strict=True):
            assert max(map(len, step)) - min(map(len, step)) <= 1


@settings(deadline=None)
@given(st.data(), st.integers(1, 30), st.integers(4, 9), SETTINGS)
def test_resumed_anywhere_by_any_ranks(data: st.DataObject, n: int, size: int, how: dict[str, Any]) -> None:
    """The state is JSON; what was read ahead and not delivered comes again; epochs go on."""
    undisturbed = FeatureLoader(Numbers(n), size, **how)
    expected = [*keys(undisturbed), *keys(undisturbed)]
    first = FeatureLoader(Numbers(n), size, read_ahead=data.draw(AHEAD), **how)
    done = data.draw(st.integers(0, len(first)))
    found = keys(first, done)
    state = json.loads(json.dumps(first.state_dict()))
    ranks = data.draw(st.integers(1, 4))
    others = [
        FeatureLoader(Numbers(n), size, rank=rank, ranks=ranks, read_ahead=data.draw(AHEAD), **how)
        for rank in range(ranks)
    ]
    for other in others:
        other.load_state_dict(state)
    for _ in range(2):
        found += joined([keys(other) for other in others])
    assert found == expected
    assert {other.epoch for other in others} == {2}


def test_a_loop_that_was_left_goes_on() -> None:
    loader = FeatureLoader(Numbers(10), 2, shuffle=True)
    whole = keys(FeatureLoader(Numbers(10), 2, shuffle=True))
    assert [keys(loader, 2), keys(loader)] == [whole[:2], whole[2:]]
    assert loader.epoch == 1


def test_an_empty_part_is_an_empty_batch() -> None:
    """All ranks must take the same number of steps: a missing one would leave the others waiting."""
    (batch,) = FeatureLoader(Numbers(1), 3, rank=0, ranks=3)
    assert batch["value"].shape == (0, 2, 2) and batch["key"] == []
    assert batch["value"].sum().item() == 0


def test_the_next_batches_are_read_while_one_is_used() -> None:
    """And no further ones: memory is bounded by what is read at once."""
    dataset, read = Numbers(12), threading.Semaphore(0)
    items = dataset.__getitems__

    def counted(places: Sequence[int], /) -> list[dict[str, Any]]:
        found = items(places)
        read.release()
        return found

    dataset.__getitems__ = counted  # type: ignore[method-assign]
    loop = iter(FeatureLoader(dataset, 2, read_ahead=2))
    for so_far in ([[0, 1, 2, 3], [4, 5, 6, 7]], [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]):
        next(loop)
        while len(dataset.reads) < len(so_far):
            assert read.acquire(timeout=30)
        next(loop)
        assert dataset.reads == so_far


@pytest.mark.parametrize(
    ("row_bytes", "ranks", "batches"), [(None, 1, 1), (2**20, 1, 2), (2**20, 2, 4), (2**30, 1, 1), (1, 1, 32)]
)
def test_small_rows_are_read_many_batches_at_once(row_bytes: int | None, ranks: int, batches: int) -> None:
    """Up to 16 MiB, and 1 where a data set does not say how large its items are."""
    dataset = Numbers(800)
    if row_bytes is not None:
        dataset.row_bytes = row_bytes  # type: ignore[attr-defined]
    keys(FeatureLoader(dataset, 8, ranks=ranks))
    assert len(dataset.reads[0]) == batches * 8 // ranks


def test_a_loop_that_was_left_leaves_no_thread() -> None:
    loop = iter(FeatureLoader(Numbers(10), 2))
    next(loop)
    assert any(thread.name.startswith("read-ahead") for thread in threading.enumerate())
    loop.close()  # type: ignore[attr-defined]
    assert not any(thread.name.startswith("read-ahead") for thread in threading.enumerate())


def test_an_error_comes_to_the_loop() -> None:
    """With the batches before it, and not as a hang of the thread."""

    class Bad(Numbers):
        def __getitems__(self, items: Sequence[int], /) -> list[dict[str, Any]]:
            if 5 in items:
                raise BadLabel("label-size", "a.tar: sample '5'")
            return super().__getitems__(items)

    loop = iter(FeatureLoader(Bad(10), 2))
    assert [next(loop)["key"] for _ in range(2)] == [[0, 1], [2, 3]]
    with pytest.raises(BadLabel, match=r"a\.tar: sample '5'"):
        next(loop)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dataset": Numbers(9)}, "rows was 10 and is 9"),
        ({"dataset": Numbers(10, "others")}, "dataset was 'numbers' and is 'others'"),
        ({"batch_size": 3}, "batch_size was 2 and is 3"),
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"shuffle": False}, "shuffle was True and is False"),
        ({"window": 2}, "window was None and is 2"),
    ],
)
def test_a_state_of_something_else(change: dict[str, Any], message: str) -> None:
    """Silently, some samples would come twice and others never."""
    how: dict[str, Any] = {"dataset": Numbers(10), "batch_size": 2, "shuffle": True}
    state = FeatureLoader(**how).state_dict()
    with pytest.raises(ValueError, match=message):
        FeatureLoader(**how | change).load_state_dict(state)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"batch_size": 1, "ranks": 2}, "batch_size is 1; with rank 0 of 2 it is at least 2"),
        ({"batch_size": 4, "rank": 2, "ranks": 2}, "ranks is 2; with rank 2 of 2 it is at least 3"),
        ({"batch_size": 4, "seed": -1}, "seed is -1"),
        ({"batch_size": 4, "window": 0}, "window is 0"),
        ({"batch_size": 4, "read_ahead": 0}, "read_ahead is 0"),
        ({"batch_size": 4, "workers": -1}, "workers is -1"),
    ],
)
def test_numbers_out_of_range(how: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FeatureLoader(Numbers(10), **how)


def test_collate_stacks_tensors_and_lists_the_rest() -> None:
    whole = torch.arange(24.0).reshape(3, 2, 4)
    items = [{"map": whole[place], "label": (place,), "one": torch.tensor(place)} for place in range(3)]
    batch = collate(items)
    assert torch.equal(batch["map"], whole) and batch["one"].tolist() == [0, 1, 2]
    assert batch["label"] == [(0,), (1,), (2,)]
    assert batch["map"].data_ptr() == whole.data_ptr(), "what lies together already is not copied"
    for picked in ([2, 0, 1], [0, 0, 1], [1]):
        found = collate([items[place] for place in picked])["map"]
        assert torch.equal(found, whole[picked]) and found.is_contiguous()
    with pytest.raises(RuntimeError, match="equal size"):
        collate([{"map": whole[0]}, {"map": whole[0, :1]}])


def test_a_window_is_one_read(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the store's rows that lie together: else each batch asks for its own."""
    dataset = FeatureDataset(str(built / "store"), NAMES)
    reads: list[list[int]] = []
    read = FeatureStore.read

    def counted(store: FeatureStore, rows: list[int], taps: list[str]) -> Any:
        reads.append(sorted(rows))
        return read(store, rows, taps)

    monkeypatch.setattr(FeatureStore, "read", counted)
    rows = [row for batch in FeatureLoader(dataset, 1, shuffle=True, window=1) for row in batch["row"]]
    blocks = {block: np.flatnonzero(dataset.blocks == block) for block in set(dataset.blocks.tolist())}
    assert sorted(reads) == sorted(
        sorted(dataset.index["row"].take(held).to_pylist()) for held in blocks.values()
    )
    assert sorted(rows) == sorted(dataset.index["row"].to_pylist()) and rows != sorted(rows)


def test_processes_give_what_the_thread_gives(built: Path) -> None:
    """Also when a loop is left and another goes on, and without a touch on torch's own random numbers."""
    check_processes(FeatureDataset(str(built / "store"), NAMES))


@pytest.mark.s3
def test_processes_on_s3(built: Path, s3: BucketUrl) -> None:
    """Workers need credentials that came into the environment after their server was started."""
    url = s3()
    fs, root = open_fs(url)
    fs.put(f"{built}/store/", f"{root}/", recursive=True)
    check_processes(FeatureDataset(url, NAMES))


def check_processes(dataset: FeatureDataset) -> None:
    how: dict[str, Any] = {"batch_size": 2, "shuffle": True, "seed": 3, "window": 2}
    plain = FeatureLoader(dataset, **how)
    expected = [batch for _ in range(2) for batch in plain]
    before = torch.get_rng_state()
    first = FeatureLoader(dataset, workers=2, **how)
    found = list(islice(first, 2))
    state = first.state_dict()
    found += [*first, *islice(first, 1)]  # the rest of one epoch, and of the next the first batch
    assert torch.equal(torch.get_rng_state(), before)
    assert len(expected) == 10 and len(found) == 6
    plain.load_state_dict(state)
    for one, other in zip([*found[:2], *plain, *plain], expected, strict=True):
        assert one["row"] == other["row"]
    for one, other in zip(found, expected[:6], strict=True):
        assert one.keys() == other.keys() and one["row"] == other["row"] and one["key"] == other["key"]
        assert all(torch.equal(one[name], other[name]) for name in NAMES)
