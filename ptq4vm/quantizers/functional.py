"""The uniform quantizer, as pure functions.

``x_int = clamp(round(x / scale) + zero_point, quant_min, quant_max)``, ``x_hat = scale * (x_int - zero_point)``,
rounding half to even before the zero point is added, as ONNX's QuantizeLinear does.
"""

from typing import Any

import torch
from torch import Tensor


def round_ste(x: Tensor) -> Tensor:
    """Round half to even; the gradient passes as if nothing had happened (straight-through estimator)."""
    return x + (x.round() - x).detach()


def clamp_ste(x: Tensor, low: float, high: float) -> Tensor:
    """Clamp; the gradient passes straight through. torch's own clamp stops it at the bounds too (seen in 2.14)."""
    return x + (x.clamp(low, high) - x).detach()


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, quant_min: int, quant_max: int) -> Tensor:
    """Float to integer codes (returned in x's dtype). ``scale`` and ``zero_point`` broadcast against x."""
    return (x / scale).round_().add_(zero_point).clamp_(quant_min, quant_max)


def dequantize(x_int: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """Integer codes to float."""
    return (x_int - zero_point) * scale


def random_mask(like: Tensor, share: float) -> Tensor:
    """Booleans shaped and laid out as ``like``, True with this probability (in steps of 1/65536).

    Four come from each random number of 64 bits: on CPU about ten times faster than ``bernoulli_``.
    """
    mask = torch.empty_like(like, dtype=torch.bool)
    if share >= 1.0:
        return mask.fill_(True)
    bits = torch.empty((mask.numel() + 3) // 4, dtype=torch.int64, device=like.device).random_(-(2**63), None)
    threshold = min(round(share * 2**16), 2**16 - 1) - 2**15
    return torch.lt(bits.view(torch.int16).as_strided(mask.shape, mask.stride()), threshold, out=mask)


def fake_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, quant_min: int, quant_max: int, keep: Tensor | None = None
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
        x_hat = quantize(x, scale, zero_point, quant_min, quant_max).sub_(zero_point).mul_(scale)
        if keep is not None:
            # torch.where: exact at weights 0 and 1.
            x_hat = torch.lerp(x, x_hat, keep.to(x.dtype), out=x_hat)
        ctx.save_for_backward(x, scale, zero_point, x_hat, keep)
        ctx.bounds = (quant_min, quant_max)
        return x_hat

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, scale, zero_point, x_hat, keep = ctx.saved_tensors
        quant_min, quant_max = ctx.bounds
        code = (x / scale).round_().add_(zero_point)
        if keep is not None:
            code.mul_(keep.to(code.dtype))  # code 0 has its gradient pass
        # The gradient where quant_min <= code <= quant_max, zero elsewhere.
        grad_x = torch.ops.aten.hardtanh_backward(grad, code, quant_min - 0.5, quant_max + 0.5)
        grad_scale = grad_zero_point = None
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            outside = torch.sub(grad, grad_x, out=code)
            grad_zero_point = -_sum_like(outside, zero_point) * scale
            # d x_hat / d scale: rounding error where inside, the clamped code where outside; both times scale here.
            grad_scale = _sum_like((x_hat - x).mul_(grad).addcmul_(outside, x), scale) / scale
        return grad_x, grad_scale, grad_zero_point, None, None, None


def _sum_like(x: Tensor, like: Tensor) -> Tensor:
    return x.sum().expand_as(like).clone() if like.numel() == 1 else x.sum_to_size(like.shape)


def choose_qparams(low: Tensor, high: Tensor, quant_min: int, quant_max: int, grid: str) -> tuple[Tensor, Tensor]:
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
