"""Losses and schedules of both phases, as pure functions."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ptq4vm.flow import warp

_MATTE_CHANNELS = 4
_LEAST_VARIANCE = 1e-6


def reconstruction_loss(outputs: tuple[Tensor, ...], targets: tuple[Tensor, ...]) -> Tensor:
    """Squared error summed over channels, averaged over the rest (as in BRECQ), and summed over all outputs.

    Outputs are (B, T, C, h, w); a block's recurrent state counts as one of them.
    """
    losses = [(y - t).square().sum(2).mean() for y, t in zip(outputs, targets, strict=True)]
    return torch.stack(losses).sum()


def alpha_loss(pha: Tensor, target: Tensor, l1_weight: float, mse_weight: float) -> Tensor:
    """Weighted sum of mean absolute and mean squared error of alpha."""
    error = pha - target
    return l1_weight * error.abs().mean() + mse_weight * error.square().mean()


def feature_loss(values: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Tensor:
    """Squared error of feature maps as a share of their variance in each frame, averaged over all of them.

    Feature maps are what a network's blocks hand on, (B, T, C, h, w), with more channels than a picture or a matte has.
    """
    errors = [
        _energy(values[name] - target)
        / (_energy(target) - target.mean((2, 3, 4)).square()).clamp(min=_LEAST_VARIANCE)
        for name, target in targets.items()
        if target.shape[2] > _MATTE_CHANNELS
    ]
    return torch.stack(errors).mean()


def _energy(x: Tensor) -> Tensor:
    """Mean square of each frame, (B, T), without the squares ever lying in memory."""
    return torch.linalg.vector_norm(x, dim=(2, 3, 4)).square() / x[0, 0].numel()


def temporal_loss(pha: Tensor, previous: Tensor, flow: Tensor, visible: Tensor) -> Tensor:
    """Optical flow assistance: ‖α̂_t - warp(α̂_{t-1})‖₁, averaged over what the flow says is visible in both frames.

    Each clip counts the same, so that the gradient does not depend on how clips are shared out to processes.

    Args:
        pha: alpha of frame t, (B, 1, H, W).
        previous: alpha of frame t-1.
        flow: backward flow, (B, 2, H, W) in pixels.
        visible: (B, 1, H, W), 0 where occluded.
    """
    error = (pha - warp(previous, flow)).abs() * visible
    return (error.sum((1, 2, 3)) / visible.sum((1, 2, 3)).clamp(min=1.0)).mean()


def cosine(progress: float) -> float:
    """From 1 to 0 as progress goes from 0 to 1."""
    return 0.5 * (1.0 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))
