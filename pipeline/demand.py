"""What a job asks of a cluster, before any machine is paid for: GPUs, memory, disk, network, time and money.

All of it comes from the spec, the backbone's configs and the first shards. Speed does not: it is what the user has
measured (`gatehouse extract SPEC --dry-run` on such a machine), or an assumption that says that it is one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline import sources
from pipeline.cluster import needs
from pipeline.layouts import layouts
from pipeline.plan import block_rows, count_rows, estimate_rows, held_bytes
from pipeline.shards import list_shards
from schemas.cluster_file import Workers
from schemas.spec import Cluster, ExtractSpec

ASSUMED_PASSES = 10.0
"""Of a network on 512 px images, a second and GPU: an order of magnitude, where the user gives no rate."""


@dataclass(frozen=True)
class Rate:
    """How fast an actor is."""

    images: float
    """A second."""
    source: str
    """Where the figure comes from, in words."""


@dataclass(frozen=True)
class Demand:
    """What a job needs, all bytes before compression."""

    images: int
    exact: bool
    """Whether every image was counted or the user gave the number; else estimated from sizes."""
    actors: int
    machines: int
    gpus: int
    memory: int
    """Bytes of main memory that an actor's queues hold; libraries and weights come on top."""
    weights: int | None
    """Bytes of the backbone, once a machine on disk and once an actor in memory; None where only a hub knows."""
    read: int
    """Bytes of shards."""
    written: int
    """Bytes of features."""
    rate: Rate

    @property
    def seconds(self) -> float:
        """Of work, without waiting for machines."""
        return self.images / (self.rate.images * self.actors)

    def cost(self, price: float) -> float:
        """In the unit of `price`, which is of one actor's GPU, or of its cores, an hour."""
        return self.actors * self.seconds / 3600 * price


def rate_of(spec: ExtractSpec, images: float | None) -> Rate:
    """The user's figure, or an assumption: one pass a feature group."""
    if images is not None:
        return Rate(images, "as given")
    groups = len(spec.expanded_groups)
    return Rate(
        ASSUMED_PASSES / groups,
        f"assumed: {ASSUMED_PASSES:g} passes a second, one a group; measure and give --rate",
    )


def demand(spec: ExtractSpec, workers: Sequence[Workers], *, images: int | None, rate: Rate) -> Demand:
    """What a spec asks of worker machines.

    Args:
        spec: checked.
        workers: that there can be; none, and the job's own number of actors counts.
        images: of the whole job, where the shards that are there now are only a sample.
        rate: of one actor.

    Raises:
        ValueError: what planning finds wrong with the spec; weights are not looked at.
        OSError: shards or configs cannot be read.
    """
    folder = sources.configs(spec.backbone)
    arrays = layouts(spec, folder)
    row_bytes = sum(array.row_bytes for array in arrays)
    pooled = sum(4 * array.shape[0] for array in arrays)
    shards = list_shards(spec.input)
    counted = count_rows(shards, spec)
    rows = estimate_rows(shards, counted)
    wanted = images or rows
    actors, machines = place(spec.cluster, workers)
    return Demand(
        images=wanted,
        exact=images is not None or len(counted) == len(shards),
        actors=actors,
        machines=machines,
        gpus=actors if spec.cluster.device == "cuda" else 0,
        memory=held_bytes(spec, block_rows(arrays, max(counted), spec.output.block_bytes)[0], row_bytes),
        weights=sources.weight_bytes(spec.backbone),
        read=sum(shard.size for shard in shards) * wanted // rows,
        written=(row_bytes * spec.output.maps + pooled * spec.output.pooled) * wanted,
        rate=rate,
    )


def misfits(cluster: Cluster, workers: Sequence[Workers], memory: int) -> list[str]:
    """Why a job would not run as meant on these machines, a line each; `memory` is that of an actor in bytes."""
    found = []
    gpus = any(kind.gpus for kind in workers)
    if gpus and cluster.device != "cuda":
        found.append(
            f"cluster.device is {cluster.device}: while no worker is there, a job sees no GPU and asks for none; give"
            " device: cuda"
        )
    if cluster.actors is None:
        found.append(
            "cluster.actors is not given: while no worker is there, one actor is asked for; give a number"
        )
    if workers and not (room := sum(_actors_on(kind, cluster) * kind.most for kind in workers)):
        found.append(f"cluster: no worker has {needs(cluster, cluster.device)}, which one actor needs")
    elif workers and room < (cluster.actors or 1):
        found.append(
            f"cluster.actors is {cluster.actors}, the machines have room for {room}; lower it or raise max_workers"
        )
    for kind in workers:
        here = _actors_on(kind, cluster)
        if kind.memory is not None and here * memory > kind.memory:
            found.append(
                f"{here} actors a {kind.name} machine hold {here * memory:,} bytes in their queues, it has"
                f" {kind.memory:,}; lower output.block_bytes"
            )
    return found


def place(cluster: Cluster, workers: Sequence[Workers]) -> tuple[int, int]:
    """The job's actors that find room, and the machines they fill, kinds in the file's order; at least one of each."""
    wanted = left = cluster.actors or 1
    machines = 0
    for kind in workers:
        if here := _actors_on(kind, cluster):
            used = min(kind.most, math.ceil(left / here))
            machines += used
            left -= min(left, used * here)
    return (max(1, wanted - left) if workers else wanted), max(1, machines)


def _actors_on(kind: Workers, cluster: Cluster) -> int:
    """Actors that a machine has room for."""
    by_cpu = kind.cpus // cluster.cpus_per_actor
    return min(by_cpu, kind.gpus) if cluster.device == "cuda" else by_cpu
