"""Muon, the optimiser of the warm start's weight matrices, known to need fewer steps than AdamW.

Momentum, then the nearest orthogonal matrix to it by five Newton-Schulz iterations (Jordan et al. 2024,
https://kellerjordan.github.io/posts/muon), scaled so that an entry moves as far as under AdamW at the same rate (Liu et
al. 2025, arXiv 2502.16982). torch.optim.Muon is the same in bfloat16, in which a CPU without such instructions
takes seconds for a step. Imports torch only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay, for matrices only."""

    def __init__(
        self, params: Iterable[torch.nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        if any(matrix.ndim != 2 for group in self.param_groups for matrix in group["params"]):
            raise ValueError("Muon is for matrices; leave vectors and embeddings to another optimiser")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            # Matrices of one shape are orthogonalised together: a few large products instead of many small ones.
            alike: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                momentum = self.state[matrix].setdefault("momentum", torch.zeros_like(matrix))
                momentum.lerp_(matrix.grad, 1 - group["momentum"])
                alike[matrix.shape].append((matrix, matrix.grad.lerp(momentum, group["momentum"])))
            for shape, pairs in alike.items():
                updates = orthogonal(torch.stack([update for _, update in pairs]))
                rate = group["lr"] * 0.2 * max(shape) ** 0.5
                for (matrix, _), update in zip(pairs, updates, strict=True):
                    matrix.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-rate)


def orthogonal(matrices: Tensor, iterations: int = 5) -> Tensor:
    """Matrices [N, A, B] with their singular values brought near 1 (0.7 to 1.2), singular vectors kept."""
    a, b, c = COEFFICIENTS
    wide = matrices.shape[-2] <= matrices.shape[-1]
    x = matrices if wide else matrices.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.mT
