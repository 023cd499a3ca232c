"""Where GATE's tasks run: each on a GPU or some cores of its own, on Ray or in this process.

A task depends on its arguments alone and stores nothing, so Ray itself may try it again when a node dies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import ray
from ray.exceptions import RayError, RayTaskError

from pipeline import cluster
from pipeline.schedule import JobFailed
from schemas.spec import Cluster

T = TypeVar("T")
_TRIES = 3


class Workers(Protocol):
    """Does tasks."""

    def map(self, function: Callable[..., T], tasks: Sequence[tuple[Any, ...]], shared: Any) -> list[T]:
        """The function's results for every task's arguments, with `shared` behind them, in the order of the tasks.

        Raises:
            JobFailed: a task's machine died each time.
            Exception: what a task raised.
        """

    def close(self) -> None:
        """Give back what was taken."""


class SerialWorkers:
    """In this process, one after the other: for debugging."""

    def map(self, function: Callable[..., T], tasks: Sequence[tuple[Any, ...]], shared: Any) -> list[T]:
        """See `Workers`."""
        return [function(*task, shared) for task in tasks]

    def close(self) -> None:
        """Nothing was taken."""


class RayWorkers:
    """Joins a cluster, or starts Ray on this machine; see `cluster.connect` for what it raises."""

    def __init__(self, wanted: Cluster) -> None:
        self._share = cluster.connect(wanted)
        self._wanted = wanted

    def map(self, function: Callable[..., T], tasks: Sequence[tuple[Any, ...]], shared: Any) -> list[T]:
        """See `Workers`."""
        remote: Any = ray.remote(_do).options(
            num_cpus=self._wanted.cpus_per_actor,
            num_gpus=1 if self._share.device == "cuda" else 0,
            max_retries=_TRIES - 1,
            scheduling_strategy="SPREAD",
        )
        held, started, working = ray.put(shared), list[Any](), list[Any]()
        try:
            for task in tasks:
                if len(working) >= self._share.actors:  # no more at once than the spec allows
                    done, working = ray.wait(working)
                    ray.get(done)  # raises what a task raised, before more is begun
                ref = remote.remote(function, task, held)
                started.append(ref)
                working.append(ref)
            found: list[T] = ray.get(started)
        except RayError as error:
            for ref in working:  # in vain, when one has failed
                ray.cancel(ref)
            if isinstance(error, RayTaskError):
                raise cluster.cause(error) from None
            raise JobFailed(f"a task died {_TRIES} times: {cluster.in_short(error)}") from error
        return found

    def close(self) -> None:
        """Stop Ray where it was started for this job."""
        if self._share.started_here:
            ray.shutdown()


def _do(function: Callable[..., T], task: tuple[Any, ...], shared: Any) -> T:
    return function(*task, shared)
