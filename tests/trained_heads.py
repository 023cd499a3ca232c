"""Heads trained on the labelled store of `tests.labelled`, each once, without plots."""

from __future__ import annotations

import functools
from pathlib import Path

from pipeline.heads.fit import fit, weights_file
from pipeline.heads.folder import HeadFolder, make_manifest, split_name
from pipeline.heads.problem import open_problem
from schemas.head import WEIGHTS
from tests.labelled import spec_of


@functools.cache
def head(labelled: Path, task: str) -> str:
    """The head's folder, which is not to be changed; it lies beside the store."""
    spec = spec_of(labelled, labelled / "heads" / task, task)
    problem, folder = open_problem(spec), HeadFolder(spec.head)
    (split,) = problem.splits
    trained = fit(problem, split, Path(spec.work_folder), "cpu")
    folder.claim(make_manifest(problem))
    weights = weights_file(trained.network, problem.digest)
    folder.write({f"{split_name(split.number)}/{WEIGHTS}": weights})
    return folder.url
