"""What a training run needs to go on, in one safetensors file that is there whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from fsspec.implementations.local import LocalFileSystem
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from pipeline import storage

_FACTS = "gatehouse"
_PARAMETER, _AVERAGE, _STATE = "parameter.", "average.", "state."


def write_checkpoint(
    path: Path,
    *,
    parameters: Mapping[str, nn.Parameter],
    average: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    facts: Mapping[str, Any],
) -> None:
    """Write weights, their average, the optimizer's state and some facts."""
    tensors = {f"{_PARAMETER}{name}": value.data for name, value in parameters.items()}
    tensors |= {f"{_AVERAGE}{name}": value for name, value in average.items()}
    for name, value in parameters.items():
        tensors |= {f"{_STATE}{key}.{name}": kept for key, kept in optimizer.state[value].items()}
    contiguous = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    data = save(contiguous, metadata={_FACTS: json.dumps(dict(facts))})
    storage.put(LocalFileSystem(), str(path.absolute()), data)


def read_checkpoint(
    path: Path,
    *,
    parameters: Mapping[str, nn.Parameter],
    average: Mapping[str, Tensor],
    optimizer: torch.optim.Optimizer,
    identity: Mapping[str, Any],
) -> dict[str, Any]:
    """Bring everything back in place, and return the facts.

    Raises:
        ValueError: it was made with another identity, for other parameters, or is no checkpoint.
    """
    try:
        opened = safe_open(path, framework="pt")
    except SafetensorError as error:
        raise ValueError(
            f"{path} cannot be read as a checkpoint ({error}); move it away to begin anew"
        ) from error
    with opened as file, torch.no_grad():
        facts: dict[str, Any] = json.loads((file.metadata() or {}).get(_FACTS, "{}"))
        _check_identity(path, facts.get("identity", {}), identity)
        stored = list(file.keys())
        _check_parameters(path, stored, parameters)
        for entry in stored:
            _check_shape(path, entry, file.get_slice(entry).get_shape(), parameters)
        for name, value in parameters.items():
            value.copy_(file.get_tensor(f"{_PARAMETER}{name}"))
        for name, tensor in average.items():
            tensor.copy_(file.get_tensor(f"{_AVERAGE}{name}"))
        for entry in stored:
            if entry.startswith(_STATE):
                key, name = entry.removeprefix(_STATE).split(".", 1)
                tensor, value = file.get_tensor(entry), parameters[name]
                # In the weight's own layout, in which the optimizer made it, and on its device.
                kept = torch.empty_like(value).copy_(tensor) if tensor.ndim else tensor.to(value.device)
                optimizer.state[value][key] = kept
    return facts


def _check_identity(path: Path, stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    different = [key for key in {**stored, **wanted} if stored.get(key) != wanted.get(key)]
    if different:
        key = different[0]
        raise ValueError(
            f"{path} was made with {key} {stored.get(key)}, the run asks for {wanted.get(key)}; give the same settings"
            " to go on, or move it away to begin anew"
        )


def _check_parameters(path: Path, stored: list[str], parameters: Mapping[str, nn.Parameter]) -> None:
    names = {name.removeprefix(_PARAMETER) for name in stored if name.startswith(_PARAMETER)}
    if names != set(parameters):
        odd = sorted(names ^ set(parameters))[0]
        raise ValueError(
            f"{path} holds {len(names)} parameters, this network has {len(parameters)}; {odd!r} is only in one of"
            " them: it was made of another network, move it away to begin anew"
        )


def _check_shape(path: Path, entry: str, shape: list[int], parameters: Mapping[str, nn.Parameter]) -> None:
    """Copying alone would spread a smaller tensor over a larger one without a word."""
    rest = entry.partition(".")[2]
    name = rest.partition(".")[2] if entry.startswith(_STATE) else rest
    expected = list(parameters[name].shape)
    if shape != expected and not (entry.startswith(_STATE) and not shape):
        raise ValueError(
            f"{path}: {entry!r} has the shape {shape}, this network's has {expected}; it was made of another network,"
            " move it away to begin anew"
        )
