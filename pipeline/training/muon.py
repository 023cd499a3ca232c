"""Muon (Jordan et al. 2024): momentum whose directions are made equally long, for matrices and convolutions.

Networks of this kind, built of many badly scaled convolutions, need a fifth of AdamW's steps with it. PyTorch's own
Muon takes matrices only, and most weights here are convolutions; a convolution is one matrix [out, in * h * w] here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import torch
from torch import Tensor

_COEFFICIENTS: Final = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration that brings singular values near 1, the method's own."""
_ITERATIONS: Final = 5
_MOMENTUM: Final = 0.95
_AS_ADAM: Final = 0.2
"""Root mean square of an update beside AdamW's, so that learning rates mean the same (Liu et al. 2025)."""
_BETAS: Final = (0.9, 0.99)
_EPSILON: Final = 1e-8


class Muon(torch.optim.Optimizer):
    """Muon for what `is_matrix` says, Adam for the rest, both with decoupled weight decay.

    Args:
        parameters: by name.
        lr: learning rate of both.
        weight_decay: of matrices.
    """

    def __init__(self, parameters: Mapping[str, Tensor], lr: float, weight_decay: float) -> None:
        matrices = [value for name, value in parameters.items() if is_matrix(name, value)]
        others = [value for name, value in parameters.items() if not is_matrix(name, value)]
        groups: Iterable[dict[str, Any]] = [
            {"params": matrices, "matrices": True},
            {"params": others, "matrices": False},
        ]
        super().__init__([group for group in groups if group["params"]], {"lr": lr, "decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step, by the gradients that are there."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if group["matrices"]:
                    parameter.mul_(1 - group["lr"] * group["decay"])
                    update = self._muon(parameter)
                else:
                    update = self._adam(parameter)
                parameter.sub_(update, alpha=group["lr"])

    def _muon(self, parameter: Tensor) -> Tensor:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(gradient, 1 - _MOMENTUM)
        ahead = gradient.lerp(state["momentum"], _MOMENTUM)  # Nesterov's
        even = orthogonalised(ahead.reshape(len(ahead), -1))
        return even.reshape(ahead.shape) * (_AS_ADAM * max(even.shape) ** 0.5)

    def _adam(self, parameter: Tensor) -> Tensor:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if not state:
            state["count"] = torch.zeros(())
            state["mean"], state["square"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["count"] += 1
        state["mean"].lerp_(gradient, 1 - _BETAS[0])
        state["square"].lerp_(gradient.square(), 1 - _BETAS[1])
        count = state["count"].item()
        mean = state["mean"] / (1 - _BETAS[0] ** count)
        square = state["square"] / (1 - _BETAS[1] ** count)
        return mean / (square.sqrt() + _EPSILON)


def is_matrix(name: str, parameter: Tensor) -> bool:
    """Whether a parameter maps vectors to vectors: not a bias, a scale, or a table of embeddings."""
    return parameter.ndim >= 2 and not name.endswith("_embedding.weight")


def orthogonalised(matrix: Tensor) -> Tensor:
    """A matrix [m, n] with the same singular vectors, and singular values between about 0.7 and 1.2."""
    wide = len(matrix) <= matrix.shape[1]
    x = (matrix if wide else matrix.T).to(torch.bfloat16)
    x = x / (x.norm() + 1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return (x if wide else x.T).to(matrix.dtype)
