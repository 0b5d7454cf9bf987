"""Matting metrics as pure functions, with one value per frame.

``preds`` and ``target`` are (..., 1, H, W), usually (T, 1, H, W) or (B, T, 1, H, W), floats in [0,
1] on any device; the result is (...,). Lower is better for all metrics. Definitions and factors are
those of the low-resolution evaluation of "Robust High-Resolution Video Matting with Temporal
Guidance" (Lin et al., WACV 2022). Grad and Conn are from "A Perceptually Motivated Online Benchmark
for Image Matting" (Rhemann et al., CVPR 2009), dtSSD is from "Perceptually Motivated Benchmark for
Video Matting" (Erofeev et al., BMVC 2015).
"""

import cv2
import numpy as np
import torch
from torch import Tensor

from ptq4vm.errors import PTQ4VMError
from ptq4vm.metrics.gradient import gradient_magnitude, stretch

_RANGE_TOLERANCE = 1e-5  # interpolation may exceed [0, 1] by a few float32 rounding errors
_GRAD_CHUNK = 8  # frames filtered at a time, to bound the memory of temporaries
# Single precision, as in the reference implementation's comparisons.
_CONN_LEVELS = np.arange(11, dtype=np.float32) / np.float32(10)
_CONN_MIN_DISTANCE = np.float32(0.15)


def mad(preds: Tensor, target: Tensor) -> Tensor:
    """Compute the mean absolute difference of each frame, times 1e3.

    Args:
        preds: Predicted alpha, (..., 1, H, W) floats in [0, 1].
        target: Ground-truth alpha, same shape and device.

    Returns:
        (...,) values in [0, 1000].

    Raises:
        PTQ4VMError: Shapes or devices differ, or values are not floats in [0, 1].

    Example:
        >>> import torch
        >>> from ptq4vm.metrics import mad
        >>> mad(torch.full((2, 1, 4, 4), 0.5), torch.zeros(2, 1, 4, 4))  # one value for each frame
        tensor([500., 500.])
    """
    preds, target = _validated(preds, target)
    return (preds - target).abs().mean(dim=(-3, -2, -1)) * 1e3


def mse(preds: Tensor, target: Tensor) -> Tensor:
    """Compute the mean squared error of each frame, times 1e3.

    Arguments, result and errors are those of :func:`mad`.

    Example:
        >>> import torch
        >>> from ptq4vm.metrics import mse
        >>> mse(torch.full((2, 1, 4, 4), 0.5), torch.zeros(2, 1, 4, 4))
        tensor([250., 250.])
    """
    preds, target = _validated(preds, target)
    return (preds - target).square().mean(dim=(-3, -2, -1)) * 1e3


def dtssd(preds: Tensor, target: Tensor, previous: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Compute the RMS difference of the temporal derivatives, times 1e2.

    It measures flicker of the prediction that the target does not have.

    Args:
        preds: Predicted alpha, (..., T, 1, H, W) floats in [0, 1]; T is successive frames of one
            clip.
        target: Ground-truth alpha, same shape and device.
        previous: (preds, target) of the preceding frame, (..., 1, H, W) each, if a clip is scored
            in chunks. If None, frame 0 begins a clip.

    Returns:
        (..., T) values; frame 0 is 0 if ``previous`` is None.

    Raises:
        PTQ4VMError: See :func:`mad`; or the time dimension is missing, or ``previous`` does not
            have the shape of one frame.

    Example:
        >>> import torch
        >>> from ptq4vm.metrics import dtssd
        >>> flicker = torch.tensor([0.5, 0.6, 0.5]).reshape(3, 1, 1, 1).expand(3, 1, 4, 4)
        >>> dtssd(flicker, torch.full((3, 1, 4, 4), 0.5)).round(decimals=3)
        tensor([ 0., 10., 10.])
    """
    preds, target = _validated(preds, target)
    if preds.ndim < 4:
        raise PTQ4VMError(
            f"Expected successive frames (..., T, 1, H, W) for dtSSD, got {tuple(preds.shape)}."
        )
    error = preds - target
    # (p_t - p_{t-1}) - (t_t - t_{t-1}) is the temporal difference of the error.
    before = error[..., :1, :, :, :] if previous is None else _previous_error(previous, error)
    step = torch.diff(error, dim=-4, prepend=before)
    return step.square().mean(dim=(-3, -2, -1)).sqrt() * 1e2


def grad(preds: Tensor, target: Tensor, normalize: bool = True) -> Tensor:
    """Compute the squared difference of gradient magnitudes, summed over each frame, / 1000.

    The gradient filter is the first derivative of a Gaussian (sigma 1.4, L2-normalised kernel,
    replicated border).

    Args:
        preds: Predicted alpha, (..., 1, H, W) floats in [0, 1].
        target: Ground-truth alpha, same shape and device.
        normalize: Stretch each frame of prediction and target to [0, 1] first, as in the
            low-resolution evaluation; False for the high-resolution one. A constant frame becomes
            0.

    Returns:
        (...,) values >= 0.

    Raises:
        PTQ4VMError: See :func:`mad`.

    Example:
        >>> import torch
        >>> from ptq4vm.metrics import grad
        >>> edge = (torch.arange(16.0) > 7).float().expand(1, 1, 16, 16)
        >>> float(grad(edge, edge)), float(grad(edge.roll(2, -1), edge)) > 0
        (0.0, True)
    """
    preds, target = _validated(preds, target)
    shape, frame = preds.shape[:-3], preds.shape[-3:]
    chunks = (x.reshape(-1, *frame).split(_GRAD_CHUNK) for x in (preds, target))
    sums = []
    for p, t in zip(*chunks, strict=True):
        if normalize:
            # Each on its own, as the reference: an offset or gain of the whole matte is no gradient
            # error.
            p, t = stretch(p), stretch(t)
        sums.append((gradient_magnitude(p) - gradient_magnitude(t)).square().sum(dim=(-3, -2, -1)))
    return torch.cat(sums).reshape(shape) / 1000


def conn(preds: Tensor, target: Tensor) -> Tensor:
    """Compute the connectivity error, summed over each frame, / 1000.

    It is computed on the CPU and has no gradient. A pixel is connected up to the highest of the
    levels 0.1, 0.2 ... 1.0 at which, and at every lower level, it is in the largest 4-connected
    component of (preds >= level and target >= level). A matte's excess over that level counts if it
    is at least 0.15; the error is the absolute difference of the excess between prediction and
    target.

    Args:
        preds: Predicted alpha, (..., 1, H, W) floats in [0, 1].
        target: Ground-truth alpha, same shape and device.

    Returns:
        (...,) values >= 0 on the device of ``preds``.

    Raises:
        PTQ4VMError: See :func:`mad`.

    Example:
        >>> import torch
        >>> from ptq4vm.metrics import conn
        >>> target = torch.zeros(1, 1, 8, 8)
        >>> target[..., :4] = 1.0
        >>> preds = target.clone()
        >>> preds[..., 2:4, 6:8] = 1.0  # an island of four pixels
        >>> conn(preds, target)
        tensor([0.0040])
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
    """Truncate to 8-bit levels, trunc(255 x) / 255, like the reference evaluation's PNG output.

    Args:
        x: Floats in [0, 1], any shape.

    Returns:
        Multiples of 1/255 in [0, 1], same shape; float32, or float64 for float64 input.

    Raises:
        PTQ4VMError: x is not floating, or outside [0, 1].

    Example:
        >>> import torch
        >>> from ptq4vm.metrics import to_png8
        >>> to_png8(torch.tensor([0.0, 0.5, 1.0])) * 255
        tensor([  0., 127., 255.])
    """
    _check_values(x, "x")
    return _at_least_float32(x).clamp(0, 1).mul(255).trunc().div(255)


def _validated(preds: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Validate the mattes and convert half precision to float32 for accurate sums."""
    if preds.shape != target.shape:
        raise PTQ4VMError(
            f"Expected preds and target of one shape, got {tuple(preds.shape)} and "
            f"{tuple(target.shape)}. Resize or slice one of them."
        )
    if preds.ndim < 3 or preds.shape[-3] != 1 or preds.numel() == 0:
        raise PTQ4VMError(
            f"Expected non-empty alpha mattes (..., 1, H, W), got {tuple(preds.shape)}."
        )
    if preds.device != target.device:
        raise PTQ4VMError(
            f"Expected one device, got preds on {preds.device}, target on {target.device}. Move "
            "one."
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
    # Negated, so that NaN fails too.
    if not (low >= -_RANGE_TOLERANCE and high <= 1 + _RANGE_TOLERANCE):
        raise PTQ4VMError(
            f"Expected {name} in [0, 1], got values from {low:g} to {high:g}. Clamp or rescale "
            "them."
        )


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _previous_error(previous: tuple[Tensor, Tensor], error: Tensor) -> Tensor:
    preds, target = _validated(*previous)
    expected = error.shape[:-4] + error.shape[-3:]
    if preds.shape != expected:
        raise PTQ4VMError(
            f"Expected previous=(preds, target) of one frame {tuple(expected)} each, got "
            f"{tuple(preds.shape)}."
        )
    return (preds - target).to(error).unsqueeze(-4)


def _conn_frame(preds: np.ndarray, target: np.ndarray) -> float:
    both = np.minimum(preds, target)  # preds and target are both >= level where their minimum is
    connected = np.ones(both.shape, dtype=bool)
    level = np.zeros(both.shape, dtype=np.uint8)
    for threshold in _CONN_LEVELS[1:]:
        above = both >= threshold
        count, labels = cv2.connectedComponents(above.view(np.uint8), connectivity=4)
        if count == 1:  # only background, at this and every higher level
            break
        # Areas by bincount, only if there are several components: connectedComponentsWithStats
        # takes four times as long. Of equally large components, the first in raster order counts.
        connected &= (
            above if count == 2 else labels == 1 + int(np.argmax(np.bincount(labels.ravel())[1:]))
        )
        # Index of the highest level up to which the pixel was always connected.
        level += connected
    base = _CONN_LEVELS[level]
    difference = _disconnected(preds, base) - _disconnected(target, base)
    return float(np.abs(difference).sum(dtype=np.float64) / 1000)


def _disconnected(alpha: np.ndarray, base: np.ndarray) -> np.ndarray:
    distance = alpha - base
    return distance * (distance >= _CONN_MIN_DISTANCE)
