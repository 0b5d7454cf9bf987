"""The uniform quantizer, as pure functions.

``x_int = clamp(round(x / scale) + zero_point, quant_min, quant_max)``, ``x_hat = scale * (x_int - zero_point)``,
rounding half to even before the zero point is added, as ONNX's QuantizeLinear does.
"""

from collections.abc import Iterable
from itertools import repeat
from typing import Any

import torch
from torch import Tensor

_PART = 2**17
"""Values of large tensors that are gone through at a time on CPU: a few of such pieces fit into its cache."""


def round_ste(x: Tensor) -> Tensor:
    """Round half to even; the gradient passes as if nothing had happened (straight-through estimator)."""
    return x + (x.round() - x).detach()


def clamp_ste(x: Tensor, low: float, high: float) -> Tensor:
    """Clamp; the gradient passes straight through. torch's own clamp stops it at the bounds too (seen in 2.14)."""
    return x + (x.clamp(low, high) - x).detach()


def quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    quant_min: int,
    quant_max: int,
    out: Tensor | None = None,
) -> Tensor:
    """Float to integer codes, in x's dtype, into ``out`` if given. ``scale`` and ``zero_point`` broadcast against x."""
    return torch.div(x, scale, out=out).round_().add_(zero_point).clamp_(quant_min, quant_max)


def dequantize(x_int: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Integer codes to float."""
    return (x_int - zero_point) * scale


def centred_codes(
    x: Tensor, scale: Tensor, zero_point: Tensor, quant_min: int, quant_max: int
) -> Tensor:
    """The integer codes less the zero point: what times ``scale`` is x on its grid."""
    codes = torch.empty_like(x)
    for a, code in _parts(scale, x, codes):
        quantize(a, scale, zero_point, quant_min, quant_max, out=code).sub_(zero_point)
    return codes


def random_mask(like: Tensor, share: float) -> Tensor:
    """Booleans shaped and laid out as ``like``, True with this probability (in steps of 1/65536).

    Four come from each random number of 64 bits: on CPU about ten times faster than ``bernoulli_``.
    """
    mask = torch.empty_like(like, dtype=torch.bool)
    if share >= 1.0:
        return mask.fill_(True)
    bits = torch.empty((mask.numel() + 3) // 4, dtype=torch.int64, device=like.device).random_(
        -(2**63), None
    )
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

    Values that land on ``quant_min`` or ``quant_max`` count as inside: they keep their gradient. torch's own clamp and
    its learnable fake-quantize were slower by 2 to 10 times on CPU, which is why the backward pass is written here.

    Args:
        x: any shape.
        scale: positive, broadcasts against x.
        zero_point: integers as floats, same shape as scale.
        quant_min: lowest code.
        quant_max: highest code; 0 is a code too.
        keep: booleans shaped as x; where False, x passes as it is (QDrop).
    """
    return _FakeQuantize.apply(x, scale, zero_point, quant_min, quant_max, keep)


class _FakeQuantize(torch.autograd.Function):
    # In place wherever possible, and without mixing booleans with floats: both count several times on CPU.

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
                # torch.where: exact at weights 0 and 1.
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
                code.mul_(kept.to(code.dtype))  # code 0 has its gradient pass
            # The gradient where quant_min <= code <= quant_max, zero elsewhere.
            torch.ops.aten.hardtanh_backward(
                g, code, quant_min - 0.5, quant_max + 0.5, grad_input=g_a
            )
            if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
                outside = torch.sub(g, g_a, out=code)
                # d x_hat / d scale: rounding error where inside, the clamped code where outside; both times scale here.
                error = (a_hat - a).mul_(g).addcmul_(outside, a)
                sums.append((_sum_like(error, scale), _sum_like(outside, zero_point)))
        if not sums:
            return grad_x, None, None, None, None, None
        error, outside = (torch.stack(column).sum(0) for column in zip(*sums, strict=True))
        return grad_x, error / scale, -outside * scale, None, None, None


def _parts(scale: Tensor, *tensors: Tensor | None) -> Iterable[tuple[Any, ...]]:
    """The tensors, on CPU cut into pieces, so that what a step leaves is still in the cache when the next reads it."""
    known = [tensor for tensor in tensors if tensor is not None]
    first, size = known[0], known[0].numel()
    dense = first.is_contiguous() or first.is_contiguous(memory_format=torch.channels_last)
    alike = all(tensor.stride() == first.stride() for tensor in known)
    if (
        first.device.type != "cpu"
        or scale.numel() > 1
        or size <= 8 * _PART
        or not (dense and alike)
    ):
        return [tensors]
    # zip ends with the tensors that are there.
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
    """Scale and zero point that cover [low, high]; zero is always exactly representable, as padding needs.

    Args:
        low: lowest values to represent, any shape.
        high: highest values, same shape.
        quant_min: lowest code.
        quant_max: highest code.
        grid: ``affine`` (zero point anywhere), ``unsigned`` (from zero upwards) or ``symmetric`` (zero point 0).

    Returns:
        scale and zero point, shaped as ``low``.
    """
    low, high = low.clamp(max=0.0), high.clamp(min=0.0)
    if grid == "symmetric":
        scale = torch.maximum(high / quant_max, low / quant_min)
    else:
        scale = (high - (low if grid == "affine" else 0.0)) / (quant_max - quant_min)
    scale = scale.clamp(min=1e-8)
    if grid == "affine":
        return scale, (quant_min - (low / scale).round()).clamp(quant_min, quant_max)
    return scale, torch.zeros_like(scale)
