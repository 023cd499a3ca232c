"""Two images through the whole computation before a job starts: time, memory, and values that storage cannot hold."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np

from pipeline import device as devices
from pipeline.batch import Batch
from pipeline.batches import Assignment, ShardEnd, read_batches
from pipeline.features import Engine, GroupTap
from pipeline.recipes import missing
from pipeline.shards import Shard
from schemas.groups import Group
from schemas.spec import ExtractSpec

_IMAGES = 2
_SAMPLING_S = 0.005


@dataclass(frozen=True)
class Probe:
    """What two images cost on one actor."""

    device: str
    seconds_per_image: float
    bytes_per_image: int
    """Peak of activations and features, an image of the batch."""
    fixed_bytes: int
    """Memory of the actor before any image: weights and libraries."""
    free_bytes: int
    """Memory that was still free on the device then."""
    unstorable: list[GroupTap]
    """Arrays whose dtype cannot hold the network's values."""
    network_calls: int = 0
    """Of the network, an image, for all groups together."""
    reference_calls: int = 0
    """Those of them that only `output.scores` takes."""
    lacking: dict[str, str] = field(default_factory=dict)
    """Groups that none of the images has all for, with the reason: a text or a control image that is not there."""
    not_finite: list[GroupTap] = field(default_factory=list)
    """Arrays where the network's own values are infinite or not numbers, which no dtype of storage cures."""


class ProbeError(ValueError):
    """A job that would fail for every row, or run out of memory."""


def measure(engine: Engine, spec: ExtractSpec, shards: Sequence[Shard], device: str) -> Probe:
    """Run the first two good images of the shards, twice: once to warm up, once to measure.

    Raises:
        ProbeError: no shard has an image that can be decoded.
    """
    batch = _images(spec, shards)
    fixed, free = devices.used_bytes(device), devices.free_bytes(device)
    with _PeakMemory(device) as peak:
        engine.run(batch)
        started = perf_counter()
        features = engine.run(batch)
        seconds = (perf_counter() - started) / len(batch.ids)
    failed = [tap for tap, values in features.maps.items() if not np.isfinite(values).all()]
    # Pooled vectors are means of what the network gave, before it was cast.
    not_finite = [tap for tap in failed if not np.isfinite(features.pooled[tap]).all()]
    return Probe(
        device=devices.name(device),
        seconds_per_image=seconds,
        bytes_per_image=max(0, peak.bytes - fixed) // len(batch.ids),
        fixed_bytes=fixed,
        free_bytes=free,
        unstorable=[tap for tap in failed if tap not in not_finite],
        network_calls=engine.network_calls,
        reference_calls=engine.reference_calls,
        lacking={group.name: reason for group in spec.expanded_groups if (reason := _lacks(group, batch))},
        not_finite=not_finite,
    )


def check(probe: Probe, spec: ExtractSpec, held_bytes: int, actors_per_device: int) -> None:
    """Refuse a job whose values cannot be stored, or whose memory does not suffice.

    Args:
        probe: what was measured.
        spec: of the job.
        held_bytes: of blocks and decoded batches that an actor holds in main memory.
        actors_per_device: actors that share the free memory.

    Raises:
        ProbeError: names the taps and proposes float32, or the batch size that would fit.
    """
    if probe.not_finite:
        taps = ", ".join(f"{group}/{tap}" for group, tap in probe.not_finite)
        raise ProbeError(
            f"backbone.dtype is {spec.backbone.dtype}, in which the network's own values are not finite at {taps};"
            " compute in bfloat16 or float32"
        )
    if probe.unstorable:
        taps = "\n".join(
            f"  groups: {group}: taps: {{name: {tap}, dtype: float32}}" for group, tap in probe.unstorable
        )
        raise ProbeError(f"values of these taps do not fit the stored dtype; ask for float32:\n{taps}")
    on_gpu = not probe.device.startswith("cpu")
    available = probe.free_bytes // actors_per_device - (0 if on_gpu else held_bytes)
    fits = available // max(1, probe.bytes_per_image)
    if fits < spec.backbone.batch_size:
        advice = (
            f"batch_size: {fits} would fit" if fits >= 1 else "not even batch_size: 1 fits; use fewer actors"
        )
        raise ProbeError(
            f"backbone.batch_size is {spec.backbone.batch_size}, which needs about"
            f" {spec.backbone.batch_size * probe.bytes_per_image / 2**30:.2f} GiB an actor for activations;"
            f" {max(0, available) / 2**30:.2f} GiB are free on {probe.device}: {advice}"
        )


def _lacks(group: Group, batch: Batch) -> str | None:
    """Why a group fails for every image of a batch, if it does."""
    reasons = missing(group, batch)
    return reasons[0] if all(reasons) else None


def _images(spec: ExtractSpec, shards: Sequence[Shard]) -> Batch:
    with ThreadPoolExecutor(1) as pool:
        for shard in shards:
            for item in read_batches(Assignment(shard), spec, pool):
                if isinstance(item, ShardEnd):
                    break
                good = [slot for slot, sample in enumerate(item.batch.ids) if sample is not None]
                if good:  # a single image twice, if need be
                    count = min(_IMAGES, spec.backbone.batch_size)
                    return item.batch.pick([good[place % len(good)] for place in range(count)])
    raise ProbeError(
        f"none of the {len(shards)} shards looked at has an image that can be decoded; see `input`"
    )


class _PeakMemory:
    """The most memory used while the context is open: the allocator's own figure on a GPU, sampled on a CPU."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self.bytes = 0

    def __enter__(self) -> _PeakMemory:
        devices.forget_peak(self._device)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        stopped = False
        while not stopped:
            stopped = self._stop.wait(_SAMPLING_S)
            self.bytes = max(self.bytes, devices.peak_bytes(self._device))
