"""The Ray cluster under a job: joined or started here, what of it the job takes, and what its errors mean."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayError, RayTaskError

from pipeline.logs import wants_json
from schemas.spec import Cluster

_LOCAL_OBJECT_STORE_BYTES = 80 * 2**20  # for receipts, and GATE's findings; more is spilled to disk


@dataclass(frozen=True)
class Share:
    """What a job takes of a cluster."""

    device: str
    """cpu or cuda."""
    actors: int
    actors_per_device: int
    """Actors that share a GPU's, or a node's, memory."""
    started_here: bool
    """Whether Ray was started on this machine for this job."""


def connect(cluster: Cluster) -> Share:
    """Join the cluster, or start Ray on this machine, and decide on devices and number of actors.

    Raises:
        ValueError: Ray was started here, and the machine has not what one actor needs.
        OSError: no cluster answers at the address, or Ray could not be started here.
    """
    started_here = _init(cluster.address)
    resources = ray.cluster_resources()
    gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
    device = ("cuda" if gpus else "cpu") if cluster.device == "auto" else cluster.device
    if started_here and (cpus < cluster.cpus_per_actor or (device == "cuda" and not gpus)):
        ray.shutdown()
        raise ValueError(
            f"cluster: one actor needs {needs(cluster, device)}, this machine has {cpus} CPUs and {gpus} GPUs;"
            " lower cpus_per_actor, set device: cpu, or give the address of a cluster"
        )
    actors = cluster.actors or max(1, gpus if device == "cuda" else cpus // cluster.cpus_per_actor)
    nodes = sum(node["Alive"] for node in ray.nodes())
    logging.getLogger("gatehouse").info(
        "device %s: %d actors on a cluster of %d CPUs and %d GPUs", device, actors, cpus, gpus
    )
    return Share(device, actors, 1 if device == "cuda" else -(-actors // nodes), started_here)


def warn_of_local_paths(urls: Iterable[str]) -> None:
    """Say which paths every machine of the cluster must see alike, where there are several machines."""
    machines = len({node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]})
    local = [url for url in urls if url.startswith(("/", "./", "../", "~", "file:"))]
    if machines > 1 and local:
        logging.getLogger("gatehouse").warning(
            "the cluster has %d machines, and all of them must find the same under %s: a folder that they share, or"
            " give URLs",
            machines,
            ", ".join(local),
        )


def needs(cluster: Cluster, device: str) -> str:
    """What one actor asks of a node, in words."""
    return f"{cluster.cpus_per_actor} CPUs" + (" and 1 GPU" if device == "cuda" else "")


def free() -> str:
    """What is free in the cluster, in words."""
    resources = ray.available_resources()
    return f"{resources.get('CPU', 0):g} CPUs, {resources.get('GPU', 0):g} GPUs in all"


def node_to_blame(node: str | None, error: RayError) -> bool:
    """Whether an actor went with its node, preempted perhaps, or is out of reach: then no shard is to blame."""
    if isinstance(error, ActorUnavailableError) or getattr(error, "preempted", False):
        return True
    return node is not None and node not in {one["NodeID"] for one in ray.nodes() if one["Alive"]}


def cause(error: RayTaskError) -> Exception:
    """What a task raised."""
    return error.cause if isinstance(error.cause, Exception) else error


def in_short(error: Exception) -> str:
    """The last line of what Ray tells, which is the cause itself, without its guesses at what may be behind it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].partition(" Some common causes include")[0] if lines else type(error).__name__


def out_of_memory(error: Exception) -> bool:
    """Whether a forward pass found no memory."""
    return "OutOfMemory" in type(error).__name__ or "DefaultCPUAllocator" in str(error)


def _init(address: str | None) -> bool:
    if ray.is_initialized():
        return False
    if wants_json():  # Ray's own lines too
        logging.getLogger("ray").propagate = True
    options: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.WARNING,
        "configure_logging": not wants_json(),
    }
    alone = address is None and "RAY_ADDRESS" not in os.environ
    if alone:
        options |= {
            "address": "local",
            "include_dashboard": False,
            "object_store_memory": _LOCAL_OBJECT_STORE_BYTES,
        }
    else:
        options["address"] = address or "auto"
    # Else Ray prints the traceback of every task that was in hand when a job failed, behind the job's own last words.
    os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(**options)
    except SystemExit:  # which Ray makes of SIGTERM
        raise KeyboardInterrupt from None
    except (RuntimeError, OSError) as error:
        if not alone:
            raise
        raise OSError(
            f"Ray could not be started on this machine: {error}; it needs a temporary folder with free space and a"
            " short path: RAY_TMPDIR names one"
        ) from error
    finally:
        if callable(handler) and threading.current_thread() is threading.main_thread():  # Ray has replaced it
            signal.signal(signal.SIGTERM, handler)
    return alone
