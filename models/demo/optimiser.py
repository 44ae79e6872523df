"""The optimiser: Muon for the matrices inside the layers, AdamW for embeddings and norms.

Muon learns this corpus in far fewer steps than AdamW alone (training loss 6.0 against 6.4 after the first 60). PyTorch's own
Muon computes in bfloat16, which processors without AVX-512 emulate at a tenth of the speed: hence this one, in float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

# Coefficients of the quintic Newton-Schulz iteration (Jordan et al., https://kellerjordan.github.io/posts/muon/).
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5
MOMENTUM = 0.95
# Gives an update the root mean square that AdamW's would have, so that both may use like learning rates.
ADAMW_SCALE = 0.2


def orthogonalise(gradient: torch.Tensor) -> torch.Tensor:
    """The nearest matrix (rows, columns) whose singular values are all about 1."""
    a, b, c = NEWTON_SCHULZ
    tall = gradient.size(0) > gradient.size(1)
    x = gradient.T if tall else gradient
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x


class Optimiser:
    """Both optimisers behind one learning rate; Muon's is `matrix_factor` times as great."""

    def __init__(self, named: Iterable[tuple[str, torch.nn.Parameter]], weight_decay: float, matrix_factor: float) -> None:
        """Take all named parameters of a model; only those inside the layers are Muon's."""
        parameters = list(named)
        self._matrices = [p for name, p in parameters if p.dim() == 2 and ".layers." in name]
        embeddings = [p for name, p in parameters if p.dim() == 2 and ".layers." not in name]
        vectors = [p for _, p in parameters if p.dim() == 1]
        groups = [{"params": embeddings, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self._adamw = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), fused=True)
        self._momenta = [torch.zeros_like(p) for p in self._matrices]
        self._weight_decay = weight_decay
        self._matrix_factor = matrix_factor

    def step(self, rate: float) -> None:
        """Apply the gradients at a learning rate and forget them."""
        for group in self._adamw.param_groups:
            group["lr"] = rate
        self._adamw.step()
        with torch.no_grad():
            self._step_matrices(rate * self._matrix_factor)
        self._adamw.zero_grad()

    def _step_matrices(self, rate: float) -> None:
        for matrix, momentum in zip(self._matrices, self._momenta, strict=True):
            if matrix.grad is None:
                continue
            momentum.lerp_(matrix.grad, 1 - MOMENTUM)
            update = orthogonalise(matrix.grad.lerp(momentum, MOMENTUM))
            matrix.mul_(1 - rate * self._weight_decay)
            matrix.add_(update, alpha=-rate * ADAMW_SCALE * max(matrix.shape) ** 0.5)
            matrix.grad = None
