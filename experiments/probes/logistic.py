"""The closed linear probe: multinomial logistic regression on standardised tokens, solved by L-BFGS.

It has one solution whatever the optimizer, so that a score depends on the features and the sample alone. The objective
is that of scikit-learn's ``LogisticRegression(C=1 / (l2 * n))``, for targets that may be shares of several classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

L2 = 1e-5
MAX_ITERS = 500
# Few patches are divided without error, and then the penalty alone says where the optimum is: at a gradient as large as
# L2 the score may still be a point off. They are cheap, so they are solved in float64 and further.
FEW_PATCHES = 5_000
MAX_ITERS_OF_FEW = 1_000
_GRADIENT_TOLERANCE = 1e-5  # largest entry; the loss is a mean, and tokens are whitened
_GRADIENT_GOAL_OF_FEW = 1e-7
_RIDGE = 1e-3  # of the whitening: keeps directions of nearly no variance from growing


@dataclass(frozen=True)
class LinearMap:
    """Logits from tokens.

    Attributes:
        weight: (C, channels).
        bias: (C,).
    """

    weight: Tensor
    bias: Tensor

    def __call__(self, tokens: Tensor) -> Tensor:
        """(..., channels) -> logits (..., C)."""
        return tokens @ self.weight.T + self.bias


def fit_logistic(
    tokens: Tensor,
    targets: Tensor,
    l2: float = L2,
    max_iters: int | None = None,
    tolerance: float | None = None,
) -> tuple[LinearMap, bool]:
    """Minimises the mean cross-entropy plus ``l2 / 2`` times the squared weights (not the biases).

    Args:
        tokens: (n, channels) float; standardised here by their own mean and deviation.
        targets: (n, C), rows sum to 1.
        l2: Weight of the penalty.
        max_iters: L-BFGS stops after as many iterations at the latest; None = :data:`MAX_ITERS`, or
            :data:`MAX_ITERS_OF_FEW` of up to :data:`FEW_PATCHES` tokens.
        tolerance: It has converged where no entry of the gradient is larger, and L-BFGS stops there; None = 1e-5, but
            of few tokens L-BFGS goes on to 1e-7.

    Returns:
        The map from tokens as they are given, with the standardisation folded in, in their precision, and whether it
        converged.
    """
    dtype, is_few = tokens.dtype, len(tokens) <= FEW_PATCHES
    max_iters = max_iters or (MAX_ITERS_OF_FEW if is_few else MAX_ITERS)
    goal = tolerance or (_GRADIENT_GOAL_OF_FEW if is_few else _GRADIENT_TOLERANCE)
    tolerance = tolerance or _GRADIENT_TOLERANCE
    if is_few:
        tokens, targets = tokens.double(), targets.double()
    mean, std = tokens.mean(dim=0), tokens.std(dim=0, correction=0)
    std = torch.where(std > 0, std, torch.ones_like(std))
    x = (tokens - mean) / std
    whitening = _whitening(x)
    x = x @ whitening
    whitened = torch.zeros(targets.shape[1], x.shape[1], dtype=x.dtype, device=x.device, requires_grad=True)
    bias = torch.zeros(targets.shape[1], dtype=x.dtype, device=x.device, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [whitened, bias],
        max_iter=max_iters,
        max_eval=2 * max_iters,
        tolerance_grad=goal,
        tolerance_change=0,
        history_size=20,
        line_search_fn='strong_wolfe',
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = torch.addmm(bias, x, whitened.T)
        penalty = l2 / 2 * (whitened @ whitening.T).square().sum()
        loss = penalty - (targets * logits.log_softmax(dim=1)).sum(dim=1).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    closure()
    assert whitened.grad is not None and bias.grad is not None
    converged = max(whitened.grad.abs().max().item(), bias.grad.abs().max().item()) <= tolerance
    weight = (whitened @ whitening.T / std).detach()
    return LinearMap(weight.to(dtype), (bias.detach() - weight @ mean).to(dtype)), converged


def _whitening(x: Tensor) -> Tensor:
    """Coordinates in which channels are uncorrelated: L-BFGS needs far fewer steps there to the same optimum.

    Args:
        x: (n, channels), of mean 0.

    Returns:
        (channels, channels).
    """
    values, vectors = torch.linalg.eigh(x.T @ x / len(x))
    return vectors / (values.clamp(min=0) + _RIDGE).sqrt()
