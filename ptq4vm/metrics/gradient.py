"""Gaussian gradient of mattes, for the metric Grad."""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

_SIGMA = 1.4
_EPSILON = 1e-2


def stretch(x: Tensor) -> Tensor:
    """Stretch each frame, (..., 1, H, W), to [0, 1]; a constant frame becomes 0."""
    low, high = x.amin(dim=(-2, -1), keepdim=True), x.amax(dim=(-2, -1), keepdim=True)
    span = high - low
    # Below this bound OpenCV's min-max normalisation returns 0.
    flat = span <= np.finfo(np.float64).eps
    return torch.where(
        flat, torch.zeros_like(x), (x - low) / torch.where(flat, torch.ones_like(span), span)
    )


def _gradient_taps() -> tuple[list[float], list[float]]:
    """Return the taps of the Gaussian and of its derivative.

    Their outer product has unit L2 norm.
    """
    # Where the Gaussian falls to epsilon, as in the benchmark's code.
    half = math.ceil(_SIGMA * math.sqrt(-2 * math.log(math.sqrt(2 * math.pi) * _SIGMA * _EPSILON)))
    offsets = range(-half, half + 1)
    smooth = [math.exp(-(i**2) / (2 * _SIGMA**2)) for i in offsets]
    slope = [i * g for i, g in zip(offsets, smooth, strict=True)]
    # The norm of an outer product is the product of the norms: normalise each factor separately.
    return [s / math.hypot(*smooth) for s in smooth], [s / math.hypot(*slope) for s in slope]


def gradient_magnitude(x: Tensor) -> Tensor:
    """Return the magnitude of the Gaussian gradient at each pixel, (B, 1, H, W)."""
    smooth, slope = _gradient_taps()
    half = len(smooth) // 2
    x = F.pad(x, (half, half, half, half), mode="replicate")
    across = _correlate(_correlate(x, slope, -1), smooth, -2)
    down = _correlate(_correlate(x, smooth, -1), slope, -2)
    return (across.square() + down.square()).sqrt()


def _correlate(x: Tensor, taps: list[float], dim: int) -> Tensor:
    """Compute a valid 1-D correlation as a sum of shifted slices.

    conv2d would use TF32 on a GPU and half precision under autocast.
    """
    length = x.shape[dim] - len(taps) + 1
    out = x.narrow(dim, 0, length) * taps[0]
    for i, tap in enumerate(taps[1:], start=1):
        out = torch.add(out, x.narrow(dim, i, length), alpha=tap)
    return out
