"""The five matting metrics as pure functions of alpha mattes, one value a frame.

Shapes: ``preds`` and ``target`` are (..., 1, H, W), usually (T, 1, H, W) or (B, T, 1, H, W), floats in [0, 1] on any
device; the result is (...,). Lower is better everywhere. Definitions and factors are those of the low-resolution
evaluation of "Robust High-Resolution Video Matting with Temporal Guidance" (Lin et al., WACV 2022); Grad and Conn come
from "A Perceptually Motivated Online Benchmark for Image Matting" (Rhemann et al., CVPR 2009), dtSSD from
"Perceptually Motivated Benchmark for Video Matting" (Erofeev et al., BMVC 2015).
"""

import math

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ptq4vm.errors import PTQ4VMError

_RANGE_TOLERANCE = 1e-5  # interpolation rounds a few float32 steps past the ends of [0, 1]; that is no user's mistake
_GRAD_SIGMA = 1.4
_GRAD_EPSILON = 1e-2
_GRAD_CHUNK = 8  # frames filtered at a time: bounds the temporaries of a long or large clip
_CONN_LEVELS = np.arange(11, dtype=np.float32) / np.float32(
    10
)  # the reference compares in single precision
_CONN_MIN_DISTANCE = np.float32(0.15)


def mad(preds: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference of each frame, times 1e3.

    Args:
        preds: predicted alpha, (..., 1, H, W) floats in [0, 1].
        target: true alpha, same shape and device.

    Returns:
        (...,) values in [0, 1000].

    Raises:
        PTQ4VMError: shapes or devices differ, not floating, or outside [0, 1].
    """
    preds, target = _validated(preds, target)
    return (preds - target).abs().mean(dim=(-3, -2, -1)) * 1e3


def mse(preds: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of each frame, times 1e3. Arguments, result and errors as :func:`mad`."""
    preds, target = _validated(preds, target)
    return (preds - target).square().mean(dim=(-3, -2, -1)) * 1e3


def dtssd(preds: Tensor, target: Tensor, previous: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Root mean square difference of the temporal derivatives, times 1e2 (flicker the target does not have).

    Args:
        preds: predicted alpha, (..., T, 1, H, W) floats in [0, 1]; T are successive frames of one clip.
        target: true alpha, same shape and device.
        previous: (preds, target) of the frame just before, (..., 1, H, W) each, so that a clip can be scored in
            chunks. None: frame 0 begins a clip.

    Returns:
        (..., T) values; frame 0 is 0 when ``previous`` is None.

    Raises:
        PTQ4VMError: as :func:`mad`, no time dimension, or ``previous`` of another shape than one frame.
    """
    preds, target = _validated(preds, target)
    if preds.ndim < 4:
        raise PTQ4VMError(
            f"Expected successive frames (..., T, 1, H, W) for dtSSD, got {tuple(preds.shape)}."
        )
    error = preds - target
    # (p_t - p_{t-1}) - (t_t - t_{t-1}) is the step of the error
    before = error[..., :1, :, :, :] if previous is None else _previous_error(previous, error)
    step = torch.diff(error, dim=-4, prepend=before)
    return step.square().mean(dim=(-3, -2, -1)).sqrt() * 1e2


def grad(preds: Tensor, target: Tensor, normalize: bool = True) -> Tensor:
    """Squared difference of the gradient magnitudes, summed over each frame, / 1000.

    The gradient is the first derivative of a Gaussian (sigma 1.4, kernel L2-normalised, border replicated).

    Args:
        preds: predicted alpha, (..., 1, H, W) floats in [0, 1].
        target: true alpha, same shape and device.
        normalize: stretch prediction and target, each and per frame, to [0, 1] first, as the low-resolution evaluation
            does; the high-resolution one does not. A constant frame becomes 0.

    Returns:
        (...,) values >= 0.

    Raises:
        PTQ4VMError: as :func:`mad`.
    """
    preds, target = _validated(preds, target)
    shape, frame = preds.shape[:-3], preds.shape[-3:]
    chunks = (x.reshape(-1, *frame).split(_GRAD_CHUNK) for x in (preds, target))
    sums = []
    for p, t in zip(*chunks, strict=True):
        if normalize:
            p, t = _stretch(p), _stretch(t)
        sums.append(
            (_gradient_magnitude(p) - _gradient_magnitude(t)).square().sum(dim=(-3, -2, -1))
        )
    return torch.cat(sums).reshape(shape) / 1000


def conn(preds: Tensor, target: Tensor) -> Tensor:
    """Connectivity error summed over each frame, / 1000. Computed on the CPU, no gradient.

    A pixel is connected up to the highest of the levels 0.1, 0.2 ... 1.0 such that it lies, there and at every lower
    level, in the largest 4-connected component of (preds >= level and target >= level). What a matte rises above that
    level counts from 0.15 on; the error is the difference between prediction and target.

    Args:
        preds: predicted alpha, (..., 1, H, W) floats in [0, 1].
        target: true alpha, same shape and device.

    Returns:
        (...,) values >= 0 on the device of ``preds``.

    Raises:
        PTQ4VMError: as :func:`mad`.
    """
    preds, target = _validated(preds, target)
    shape, dtype, device = preds.shape[:-3], preds.dtype, preds.device
    p, t = (
        x.detach().reshape(-1, *x.shape[-2:]).to("cpu", torch.float32).numpy()
        for x in (preds, target)
    )
    values = [_conn_frame(a, b) for a, b in zip(p, t, strict=True)]
    return torch.tensor(values, dtype=dtype, device=device).reshape(shape)


def to_png8(x: Tensor) -> Tensor:
    """Round down to what an 8-bit PNG holds, as the reference evaluation writes its predictions: trunc(255 x) / 255.

    Args:
        x: floats in [0, 1], any shape.

    Returns:
        Multiples of 1/255 in [0, 1], same shape; float32, or float64 for float64 input.

    Raises:
        PTQ4VMError: not floating, or outside [0, 1].
    """
    _check_values(x, "x")
    return _at_least_float32(x).clamp(0, 1).mul(255).trunc().div(255)


def _validated(preds: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Refuse what cannot be scored; half precision is widened so that sums keep their digits."""
    if preds.shape != target.shape:
        raise PTQ4VMError(
            f"Expected preds and target of one shape, got {tuple(preds.shape)} and {tuple(target.shape)}. "
            "Resize or slice one of them."
        )
    if preds.ndim < 3 or preds.shape[-3] != 1 or preds.numel() == 0:
        raise PTQ4VMError(
            f"Expected non-empty alpha mattes (..., 1, H, W), got {tuple(preds.shape)}."
        )
    if preds.device != target.device:
        raise PTQ4VMError(
            f"Expected one device, got preds on {preds.device}, target on {target.device}. Move one."
        )
    _check_values(preds, "preds")
    _check_values(target, "target")
    return _at_least_float32(preds), _at_least_float32(target)


def _check_values(x: Tensor, name: str) -> None:
    if not x.is_floating_point():
        raise PTQ4VMError(
            f"Expected {name} as floats in [0, 1], got {x.dtype}. Divide 8-bit values by 255."
        )
    if x.numel() == 0:
        return
    low, high = (float(v) for v in x.detach().aminmax())
    if not (
        low >= -_RANGE_TOLERANCE and high <= 1 + _RANGE_TOLERANCE
    ):  # written so that NaN fails too
        raise PTQ4VMError(
            f"Expected {name} in [0, 1], got values from {low:g} to {high:g}. Clamp or rescale them."
        )


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _previous_error(previous: tuple[Tensor, Tensor], error: Tensor) -> Tensor:
    preds, target = _validated(*previous)
    expected = error.shape[:-4] + error.shape[-3:]
    if preds.shape != expected:
        raise PTQ4VMError(
            f"Expected previous=(preds, target) of one frame {tuple(expected)} each, got {tuple(preds.shape)}."
        )
    return (preds - target).to(error).unsqueeze(-4)


def _stretch(x: Tensor) -> Tensor:
    low, high = x.amin(dim=(-2, -1), keepdim=True), x.amax(dim=(-2, -1), keepdim=True)
    span = high - low
    flat = (
        span <= np.finfo(np.float64).eps
    )  # OpenCV's own bound below which its min-max normalisation gives 0
    return torch.where(
        flat, torch.zeros_like(x), (x - low) / torch.where(flat, torch.ones_like(span), span)
    )


def _gradient_taps() -> tuple[list[float], list[float]]:
    """Taps of the Gaussian and of its derivative, such that their outer product has unit L2 norm."""
    half = math.ceil(
        _GRAD_SIGMA * math.sqrt(-2 * math.log(math.sqrt(2 * math.pi) * _GRAD_SIGMA * _GRAD_EPSILON))
    )
    offsets = range(-half, half + 1)
    smooth = [math.exp(-(i**2) / (2 * _GRAD_SIGMA**2)) for i in offsets]
    slope = [i * g for i, g in zip(offsets, smooth, strict=True)]
    # the norm of an outer product is the product of the norms, so each factor can be normalised by itself
    return [s / math.hypot(*smooth) for s in smooth], [s / math.hypot(*slope) for s in slope]


def _gradient_magnitude(x: Tensor) -> Tensor:
    smooth, slope = _gradient_taps()
    half = len(smooth) // 2
    x = F.pad(x, (half, half, half, half), mode="replicate")
    across = _correlate(_correlate(x, slope, -1), smooth, -2)
    down = _correlate(_correlate(x, smooth, -1), slope, -2)
    return (across.square() + down.square()).sqrt()


def _correlate(x: Tensor, taps: list[float], dim: int) -> Tensor:
    """Valid 1-D correlation as shifted sums: conv2d would drop to TF32 on a GPU and to half under autocast."""
    length = x.shape[dim] - len(taps) + 1
    out = x.narrow(dim, 0, length) * taps[0]
    for i, tap in enumerate(taps[1:], start=1):
        out = torch.add(out, x.narrow(dim, i, length), alpha=tap)
    return out


def _conn_frame(preds: np.ndarray, target: np.ndarray) -> float:
    both = np.minimum(preds, target)  # both >= level exactly where the smaller one is
    connected = np.ones(both.shape, dtype=bool)
    level = np.zeros(both.shape, dtype=np.uint8)
    for threshold in _CONN_LEVELS[1:]:
        above = both >= threshold
        count, labels = cv2.connectedComponents(above.view(np.uint8), connectivity=4)
        if count == 1:  # nothing but background, here and at every higher level
            break
        # areas by bincount, and only where there is a choice: connectedComponentsWithStats takes four times as long.
        # Of components of one size the first in reading order counts.
        connected &= (
            above if count == 2 else labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
        )
        level += connected
    base = _CONN_LEVELS[level]
    difference = _disconnected(preds, base) - _disconnected(target, base)
    return float(np.abs(difference).sum(dtype=np.float64) / 1000)


def _disconnected(alpha: np.ndarray, base: np.ndarray) -> np.ndarray:
    distance = alpha - base
    return distance * (distance >= _CONN_MIN_DISTANCE)
