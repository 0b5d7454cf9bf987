"""Losses and schedules of block reconstruction and global calibration, as pure functions."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ptq4vm.flow import warp

_MATTE_CHANNELS = 4
_LEAST_VARIANCE = 1e-6


def reconstruction_loss(outputs: tuple[Tensor, ...], targets: tuple[Tensor, ...]) -> Tensor:
    """Compute the squared error, summed over channels and outputs, averaged over the rest.

    The normalization is BRECQ's.

    Args:
        outputs: block outputs, each (B, T, C, h, w), including the recurrent state.
        targets: the float network's outputs, of the same shapes.
    """
    losses = [(y - t).square().sum(2).mean() for y, t in zip(outputs, targets, strict=True)]
    return torch.stack(losses).sum()


def alpha_loss(pha: Tensor, target: Tensor, l1_weight: float, mse_weight: float) -> Tensor:
    """Compute the weighted sum of mean absolute and mean squared error of alpha."""
    error = pha - target
    return l1_weight * error.abs().mean() + mse_weight * error.square().mean()


def feature_loss(values: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> Tensor:
    """Compute the squared error of feature maps relative to each frame's variance, averaged.

    Feature maps are the block outputs (B, T, C, h, w) with more than 4 channels; pictures and
    mattes are left out.
    """
    # Var = E[x²] - E[x]², of all channels of a frame together. Flat maps would divide by 0.
    errors = [
        _energy(values[name] - target)
        / (_energy(target) - target.mean((2, 3, 4)).square()).clamp(min=_LEAST_VARIANCE)
        for name, target in targets.items()
        if target.shape[2] > _MATTE_CHANNELS
    ]
    return torch.stack(errors).mean()


def _energy(x: Tensor) -> Tensor:
    """Compute the mean square of each frame, (B, T), without storing the squares."""
    return torch.linalg.vector_norm(x, dim=(2, 3, 4)).square() / x[0, 0].numel()


def temporal_loss(pha: Tensor, previous: Tensor, flow: Tensor, visible: Tensor) -> Tensor:
    """Compute the temporal loss ‖α̂_t - warp(α̂_{t-1})‖₁, averaged over the visible pixels.

    The average is per clip and then over clips, so that the gradient doesn't depend on how clips
    are distributed over ranks.

    Args:
        pha: alpha of frame t, (B, 1, H, W).
        previous: alpha of frame t-1, (B, 1, H, W).
        flow: backward optical flow in pixels, (B, 2, H, W).
        visible: (B, 1, H, W), 0 for pixels occluded in one of the frames.
    """
    error = (pha - warp(previous, flow)).abs() * visible
    return (error.sum((1, 2, 3)) / visible.sum((1, 2, 3)).clamp(min=1.0)).mean()


def cosine(progress: float) -> float:
    """Return the cosine schedule, falling from 1 to 0 as progress goes from 0 to 1."""
    return 0.5 * (1.0 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))
