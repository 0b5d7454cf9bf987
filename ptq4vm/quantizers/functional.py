"""Uniform quantization as pure functions.

``x_int = clamp(round(x / scale) + zero_point, quant_min, quant_max)`` and ``x_hat = scale * (x_int
- zero_point)``. Rounding is half to even, before the zero point is added, as in ONNX's
QuantizeLinear.
"""

from collections.abc import Iterable
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

_PART = 2**17
"""Values per chunk of a large tensor on CPU; a few such chunks fit into the cache."""


def round_ste(x: Tensor) -> Tensor:
    """Round half to even, with a straight-through gradient."""
    return x + (x.round() - x).detach()


def clamp_ste(x: Tensor, low: float, high: float) -> Tensor:
    """Clamp, with a straight-through gradient.

    torch's own clamp also blocks the gradient of values at the bounds (seen in torch 2.14).
    """
    return x + (x.clamp(low, high) - x).detach()


def quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    quant_min: int,
    quant_max: int,
    out: Tensor | None = None,
) -> Tensor:
    """Return integer codes in x's dtype, written to ``out`` if given.

    ``scale`` and ``zero_point`` broadcast against x.
    """
    # A division, as ONNX defines it: x times 1 / scale rounds some ties to another code.
    return torch.div(x, scale, out=out).round_().add_(zero_point).clamp_(quant_min, quant_max)


def dequantize(x_int: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Return the float values of integer codes."""
    return (x_int - zero_point) * scale


def centred_codes(
    x: Tensor, scale: Tensor, zero_point: Tensor, quant_min: int, quant_max: int
) -> Tensor:
    """Return the integer codes minus the zero point; times ``scale`` they equal x on its grid."""
    codes = torch.empty_like(x)
    for a, code in _parts(scale, x, codes):
        quantize(a, scale, zero_point, quant_min, quant_max, out=code).sub_(zero_point)
    return codes


def random_mask(like: Tensor, share: float) -> Tensor:
    """Return booleans in the shape and layout of ``like``, True with probability ``share``.

    The probability has steps of 1/65536. Each random 64-bit number yields four values, which is
    about ten times faster on CPU than ``bernoulli_``.
    """
    mask = torch.empty_like(like, dtype=torch.bool)
    if share >= 1.0:
        return mask.fill_(True)
    # With None as the upper end, all 64 bits are random.
    bits = torch.empty((mask.numel() + 3) // 4, dtype=torch.int64, device=like.device).random_(
        -(2**63), None
    )
    # int16 is uniform over [-2^15, 2^15), and the threshold must itself be an int16.
    threshold = min(round(share * 2**16), 2**16 - 1) - 2**15
    return torch.lt(
        bits.view(torch.int16).as_strided(mask.shape, mask.stride()), threshold, out=mask
    )


def fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    quant_min: int,
    quant_max: int,
    keep: Tensor | None = None,
) -> Tensor:
    """Quantize and dequantize, differentiable in x, scale and zero_point (LSQ+, arXiv 2004.09576).

    Values that round to ``quant_min`` or ``quant_max`` count as inside the range and keep their
    gradient. The backward pass is custom because torch's own clamp and learnable fake-quantize are
    2 to 10 times slower on CPU.

    Args:
        x: Any shape.
        scale: Positive; broadcasts against x.
        zero_point: Integers as floats, same shape as scale.
        quant_min: Lowest code.
        quant_max: Highest code; the range must include code 0.
        keep: Booleans shaped as x; where False, x passes through unchanged (QDrop).

    Example:
        >>> import torch
        >>> from ptq4vm.quantizers import choose_qparams, fake_quantize
        >>> low, high = torch.tensor([-1.0]), torch.tensor([2.0])
        >>> scale, zero_point = choose_qparams(low, high, 0, 3, "affine")
        >>> scale, zero_point
        (tensor([1.]), tensor([1.]))
        >>> fake_quantize(torch.tensor([-1.4, 0.2, 0.7, 5.0]), scale, zero_point, 0, 3)
        tensor([-1.,  0.,  1.,  2.])
    """
    return _FakeQuantize.apply(x, scale, zero_point, quant_min, quant_max, keep)


class _FakeQuantize(torch.autograd.Function):
    # In place where possible, and no mixing of booleans and floats: both are much faster on CPU.

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        quant_min: int,
        quant_max: int,
        keep: Tensor | None,
    ) -> Tensor:
        x_hat = torch.empty_like(x)
        for a, a_hat, kept in _parts(scale, x, x_hat, keep):
            quantize(a, scale, zero_point, quant_min, quant_max, out=a_hat).sub_(zero_point).mul_(
                scale
            )
            if kept is not None:
                # Equals torch.where, since lerp is exact at weights 0 and 1.
                torch.lerp(a, a_hat, kept.to(a.dtype), out=a_hat)
        ctx.save_for_backward(x, scale, zero_point, x_hat, keep)
        ctx.bounds = (quant_min, quant_max)
        return x_hat

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, scale, zero_point, x_hat, keep = ctx.saved_tensors
        quant_min, quant_max = ctx.bounds
        grad_x, sums = torch.empty_like(x), []
        for a, a_hat, g, g_a, kept in _parts(scale, x, x_hat, grad, grad_x, keep):
            code = (a / scale).round_().add_(zero_point)
            if kept is not None:
                code.mul_(kept.to(code.dtype))  # code 0 is in range, so the gradient passes
            # Equals g where quant_min <= code <= quant_max, and zero elsewhere.
            # Bounds half a step outside, since hardtanh blocks values that lie on its own.
            torch.ops.aten.hardtanh_backward(
                g, code, quant_min - 0.5, quant_max + 0.5, grad_input=g_a
            )
            if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
                outside = torch.sub(g, g_a, out=code)
                # d x_hat / d scale, times scale: the rounding error inside the range, the clamped
                # code outside.
                error = (a_hat - a).mul_(g).addcmul_(outside, a)
                sums.append((_sum_like(error, scale), _sum_like(outside, zero_point)))
        if not sums:
            return grad_x, None, None, None, None, None
        error, outside = (torch.stack(column).sum(0) for column in zip(*sums, strict=True))
        # Inside the range d x_hat / d zero_point is 0: code and zero point move together.
        return grad_x, error / scale, -outside * scale, None, None, None


def _parts(scale: Tensor, *tensors: Tensor | None) -> Iterable[tuple[Any, ...]]:
    """Split large tensors on CPU into chunks.

    A chunk stays in the cache between successive operations.
    """
    known = [tensor for tensor in tensors if tensor is not None]
    first, size = known[0], known[0].numel()
    dense = first.is_contiguous() or first.is_contiguous(memory_format=torch.channels_last)
    alike = all(tensor.stride() == first.stride() for tensor in known)
    if (
        first.device.type != "cpu"
        # In a flat chunk a value's channel is not known.
        or scale.numel() > 1
        or size <= 8 * _PART
        or not (dense and alike)
    ):
        return [tensors]
    # zip stops at the end of the tensors, ignoring the infinite repeat(None).
    pieces = (
        repeat(None) if tensor is None else tensor.as_strided((size,), (1,)).split(_PART)
        for tensor in tensors
    )
    return zip(*pieces, strict=False)


def _sum_like(x: Tensor, like: Tensor) -> Tensor:
    return x.sum().expand_as(like).clone() if like.numel() == 1 else x.sum_to_size(like.shape)


def choose_qparams(
    low: Tensor, high: Tensor, quant_min: int, quant_max: int, grid: str
) -> tuple[Tensor, Tensor]:
    """Return scale and zero point that cover [low, high] and represent zero exactly.

    Zero must be exact for zero padding.

    Args:
        low: Lowest values to represent, any shape.
        high: Highest values, same shape.
        quant_min: Lowest code.
        quant_max: Highest code.
        grid: ``affine`` (any zero point), ``unsigned`` (from zero upwards) or ``symmetric`` (zero
            point 0).

    Returns:
        Scale and zero point, shaped as ``low``.
    """
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    if grid == "symmetric":
        # Of 2^b codes the negative side has one more; each side may decide the scale.
        scale = torch.maximum(high / quant_max, low / quant_min)
    else:
        scale = (high - (low if grid == "affine" else 0.0)) / (quant_max - quant_min)
    # A tensor of zeros has no range.
    scale = scale.clamp(min=1e-8)
    if grid == "affine":
        return scale, (quant_min - (low / scale).round()).clamp(quant_min, quant_max)
    return scale, torch.zeros_like(scale)
