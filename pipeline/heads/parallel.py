"""A head job on several processes, by Ray Train: each opens the problem, and computes its own share of each batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ray
import torch
from ray.train import RunConfig, ScalingConfig, get_context
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from pipeline import cluster
from pipeline.heads.folder import HeadFolder
from pipeline.heads.follow import STOP
from pipeline.heads.problem import open_problem
from pipeline.heads.run import train_splits
from pipeline.heads.team import Team
from pipeline.schedule import JobFailed
from schemas.head import HeadSpec
from schemas.spec import Cluster

_WAIT_S = 24 * 3600
"""The others wait while the first one tests and draws; that a process died Ray sees by itself."""


def train_together(spec: HeadSpec) -> None:
    """Train all splits on `spec.processes` processes; results are in the head's folder then.

    Raises:
        JobFailed: a process died, or raised.
        ValueError: Ray was started here, and the machine has not what the processes need.
        ConnectionError: no cluster answers at the address.
    """
    share = cluster.connect(Cluster(address=spec.address, device=spec.device))
    try:
        if share.started_here and spec.processes > share.actors:  # Ray would wait for more, for ever
            kind = "GPU" if share.device == "cuda" else "CPU"
            raise ValueError(
                f"processes: {spec.processes} take a {kind} each, and this machine has {share.actors}; lower it, or"
                " give the address of a cluster"
            )
        _run(spec, share)
    finally:
        if share.started_here:
            ray.shutdown()


def _run(spec: HeadSpec, share: cluster.Share) -> None:
    use_gpu = share.device == "cuda"
    try:
        TorchTrainer(
            _process,
            train_loop_config=spec.model_dump(mode="json") | {"device": share.device},
            scaling_config=ScalingConfig(num_workers=spec.processes, use_gpu=use_gpu),
            torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo", timeout_s=_WAIT_S),
            run_config=RunConfig(name="ray", storage_path=str(Path(spec.work_folder).absolute())),
        ).fit()
    except Exception as error:  # Ray Train's own types differ between releases
        raise JobFailed(f"a training process failed: {cluster.in_short(error)}") from error


def _process(config: dict[str, Any]) -> None:
    spec = HeadSpec.model_validate(config)
    context = get_context()
    team = Team(context.get_world_rank(), context.get_world_size(), spec.device)
    torch.set_num_threads(1)  # processes share a node's cores
    if spec.device == "cuda":
        torch.cuda.set_device(get_device())  # each sees all GPUs of its node
    stop = Path(spec.work_folder) / STOP
    train_splits(
        open_problem(spec),
        HeadFolder(spec.head),
        Path(spec.work_folder),
        spec.device,
        team=team,
        on_step=lambda split, step, logged: team.writes and stop.exists(),
    )
