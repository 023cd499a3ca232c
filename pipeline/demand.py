"""What a job asks of a cluster, before any machine is paid for: GPUs, memory, disk, network, time and money.

All of it comes from the spec, the backbone's configs and the first shards. Speed does not: it is what the user has
measured (`gatehouse extract SPEC --dry-run` on such a machine), or an assumption that says that it is one.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline import checkpoint, embedded, families, scores, sources
from pipeline.cluster import needs
from pipeline.layouts import layouts
from pipeline.noising import load_schedule
from pipeline.plan import block_rows, count_rows, estimate_rows, held_bytes
from pipeline.recipes import Recipe, windows
from pipeline.shards import list_shards
from pipeline.storage import open_fs
from pipeline.techniques.starts import start_of
from schemas.cluster_file import Workers
from schemas.groups import Group
from schemas.receipts import ArrayLayout
from schemas.spec import Cluster, ExtractSpec
from schemas.techniques import ControlNet, IpAdapter, Lora, Technique

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
    scaled: bool
    """Whether `read` was estimated for the user's number, from the shards that are there."""
    actors: int
    machines: int
    gpus: int
    memory: int
    """Bytes of main memory that an actor's queues hold; libraries and weights come on top."""
    weights: int | None
    """Bytes of backbone and techniques, once a machine on disk and once an actor in memory; None where only a hub
    knows."""
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
        """In the unit of `price`, which is of one worker machine an hour: they are paid for whole."""
        return self.machines * self.seconds / 3600 * price


def rate_of(spec: ExtractSpec, images: float | None) -> Rate:
    """The user's figure, or an assumption by the network's passes; what ControlNets add to those is not known.

    Raises:
        ValueError: what planning finds wrong with the spec.
    """
    if images is not None:
        return Rate(images, "as given")
    each = passes(spec)
    return Rate(
        ASSUMED_PASSES / each,
        f"assumed: {ASSUMED_PASSES:g} passes a second, {each} an image; measure and give --rate",
    )


def passes(spec: ExtractSpec) -> int:
    """Calls of the network that one image takes, as `Engine.network_calls`, without loading any weights.

    Raises:
        ValueError: taps or timesteps that the backbone does not have.
    """
    folder = sources.configs(spec.backbone)
    family = families.family(folder)
    schedule = load_schedule(folder, checkpoint.config(folder, "scheduler"))
    calls = {}
    for group in [*spec.expanded_groups, *_references(spec, layouts(spec, folder))]:
        start = start_of(group)
        recipe = Recipe(group, start, start.timestep(schedule), windows(group, family, folder), steering=())
        calls[recipe.key] = (1 + start.calls(schedule)) * len(recipe.seeds) * len(recipe.prompts)
    return sum(calls.values())


def _references(spec: ExtractSpec, arrays: Sequence[ArrayLayout]) -> Iterator[Group]:
    """What Scores are measured against."""
    if spec.output.scores is None:
        return
    scored = {array.group for array in arrays if scores.has_score(array.tap, array.shape)}
    for group in spec.expanded_groups:
        if group.name in scored:
            anchor = scores.anchor(group, spec.output.scores)
            yield from (anchor, scores.clean(group), scores.clean(anchor))


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
        scaled=images is not None,
        actors=actors,
        machines=machines,
        gpus=actors if spec.cluster.device == "cuda" else 0,
        memory=held_bytes(spec, block_rows(arrays, max(counted), spec.output.block_bytes)[0], row_bytes),
        weights=_weights(spec),
        read=sum(shard.size for shard in shards) * wanted // rows,
        written=(row_bytes * spec.output.maps + pooled * spec.output.pooled) * wanted,
        rate=rate,
    )


def _weights(spec: ExtractSpec) -> int | None:
    """Bytes of all that an actor loads, each file once; None where only a hub knows."""
    places = {place for group in spec.expanded_groups for one in group.techniques for place in _places(one)}
    sizes = [sources.weight_bytes(spec.backbone), *map(_bytes, sorted(places))]
    return None if None in sizes else sum(size for size in sizes if size is not None)


def _places(technique: Technique) -> list[str]:
    """Where a technique's weights lie."""
    if isinstance(technique, IpAdapter):
        return [technique.source, technique.image_encoder]
    return [technique.source] if isinstance(technique, ControlNet | Lora) else []


def _bytes(place: str) -> int | None:
    """Of the weights at a path or URL, or beside the embedded backbone; None for a hub's."""
    if place.startswith("embedded/") and not os.path.exists(place):
        place = str(Path(embedded.BACKBONE).parent / place.removeprefix("embedded/"))
    if "://" not in place and not os.path.exists(place):
        return None
    fs, root = open_fs(place.rstrip("/"))
    found = fs.find(root, detail=True)
    return sum(int(info["size"]) for path, info in found.items() if path.endswith(".safetensors"))


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
    said = [(kind, here) for kind in workers if (here := _actors_on(kind, cluster)) is not None]
    if workers and len(said) == len(workers):  # else there may be more room than the file says
        room = sum(here * kind.most for kind, here in said)
        if not room:
            found.append(f"cluster: no worker has {needs(cluster, cluster.device)}, which one actor needs")
        elif room < (cluster.actors or 1):
            found.append(
                f"cluster.actors is {cluster.actors}, the machines have room for {room}; lower it or raise max_workers"
            )
    for kind, here in said:
        if kind.memory is not None and here * memory > kind.memory:
            found.append(
                f"{here} actors a {kind.name} machine hold {here * memory:,} bytes in their queues, it has"
                f" {kind.memory:,}; lower output.block_bytes"
            )
    return found


def place(cluster: Cluster, workers: Sequence[Workers]) -> tuple[int, int]:
    """The job's actors that find room, and the machines they fill, kinds in the file's order; at least one of each.

    A machine of which nothing is known has room for one.
    """
    wanted = left = cluster.actors or 1
    if not workers:
        return wanted, wanted
    machines = 0
    for kind in workers:
        here = _actors_on(kind, cluster)
        if here := 1 if here is None else here:
            used = min(kind.most, math.ceil(left / here))
            machines += used
            left -= min(left, used * here)
    return max(1, wanted - left), max(1, machines)


def _actors_on(kind: Workers, cluster: Cluster) -> int | None:
    """Actors that a machine has room for; None where the file leaves it to Ray to look up what it has."""
    gpus = kind.gpus if cluster.device == "cuda" else math.inf
    if kind.cpus is None or gpus is None:
        return None
    return int(min(kind.cpus // cluster.cpus_per_actor, gpus))
