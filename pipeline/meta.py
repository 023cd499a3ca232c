"""Networks without weights: on torch's meta device, which knows shapes and dtypes only and computes nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor


def on_meta(network_class: Any, config: Mapping[str, Any]) -> Any:
    """A network without weights, on the meta device."""
    with torch.device("meta"):
        return network_class.from_config(dict(config)).eval()


def meta_call(network: Any, inputs: Callable[[Any], Mapping[str, Any]]) -> Callable[[], object]:
    """A call of a network on the meta device."""
    given = {name: _to_meta(name, value) for name, value in inputs(network).items()}

    def call() -> object:
        with torch.device("meta"), torch.no_grad():
            return network(**given)

    return call


def _to_meta(name: str, value: Any) -> Any:
    if name in ("img_ids", "txt_ids"):
        return value  # positions: their values say how FLUX's tokens are laid out
    if isinstance(value, Tensor):
        return value.to("meta")
    if isinstance(value, Mapping):
        return {key: _to_meta(key, one) for key, one in value.items()}
    return type(value)(_to_meta("", one) for one in value) if isinstance(value, list | tuple) else value
