"""AdaRound (arXiv 2004.10568): rectified sigmoid, rounding regularizer and its annealing."""

import math
from typing import Any

import torch
from torch import Tensor

# Stretched beyond [0, 1] and clamped, h reaches 0 and 1 at finite V; a sigmoid never does.
ZETA, GAMMA = 1.1, -0.1


def rectified_sigmoid(v: Tensor) -> Tensor:
    """h(V) = clamp(sigmoid(V) (ζ - γ) + γ, 0, 1), with ζ = 1.1 and γ = -0.1."""
    return (torch.sigmoid(v) * (ZETA - GAMMA) + GAMMA).clamp(0.0, 1.0)


def inverse_rectified_sigmoid(h: Tensor) -> Tensor:
    """V such that :func:`rectified_sigmoid` (V) = h, for h in [0, 1]."""
    return -torch.log((ZETA - GAMMA) / (h - GAMMA) - 1.0)


def rounding_regularizer(v: Tensor, beta: float) -> Tensor:
    """Σ 1 - |2 h(V) - 1|^β: 0 where every h(V) is 0 or 1."""
    return _RoundingRegularizer.apply(v, beta)


class _RoundingRegularizer(torch.autograd.Function):
    # Each power is computed once: half of autograd's work, in blocks with many weights, few pixels.

    @staticmethod
    def forward(ctx: Any, v: Tensor, beta: float) -> Tensor:  # type: ignore[override]
        sigmoid = torch.sigmoid(v)
        raw = (sigmoid * (ZETA - GAMMA)).add_(GAMMA)
        signed = raw.clamp(0.0, 1.0).mul_(2.0).sub_(1.0)  # 2 h(V) - 1
        size = signed.abs()
        power = size.pow(beta)
        # d(-|u|^β)/dV for u = 2 h(V) - 1: power / size is |u|^(β-1), du/dh is 2, and the two
        # backward ops add the slopes of the clamp and of the sigmoid.
        slope = (
            (power / size.clamp_(min=1e-12)).mul_(signed.sign_()).mul_(-2.0 * beta * (ZETA - GAMMA))
        )
        slope = torch.ops.aten.sigmoid_backward(slope, sigmoid)
        ctx.save_for_backward(torch.ops.aten.hardtanh_backward(slope, raw, 0.0, 1.0))
        return power.numel() - power.sum()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return ctx.saved_tensors[0] * grad, None


def annealed_beta(
    progress: float, warmup: float, start: float = 20.0, end: float = 2.0
) -> float | None:
    """Anneal β by a cosine from ``start`` to ``end``.

    Args:
        progress: share of a block's steps that are done, in [0, 1].
        warmup: share of the steps without the regularizer.
        start: β at the end of the warm-up.
        end: β at the last step.

    Returns:
        β; None during the warm-up.
    """
    if progress < warmup:
        return None
    # A large β penalises only h near ½; as it falls, all h are driven to 0 or 1.
    t = (progress - warmup) / max(1.0 - warmup, 1e-8)
    return end + 0.5 * (start - end) * (1.0 + math.cos(t * math.pi))
