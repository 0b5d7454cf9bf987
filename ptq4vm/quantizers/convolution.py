"""Convolutions with faster backward passes for calibration on CPU."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class ConvGeometry(NamedTuple):
    """Geometry of a 2D convolution; pairs are (vertical, horizontal)."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: ConvGeometry) -> Tensor:
    """Compute ``F.conv2d``, with a faster input gradient for dilated depthwise kernels.

    On CPU that gradient is 15 times faster than torch's (measured with torch 2.14).

    Args:
        x: (B, C_in, h, w).
        weight: (C_out, C_in / groups, kh, kw).
        bias: (C_out,) or None.
        geometry: Stride, padding, dilation and groups.
    """
    if _is_dilated_depthwise(weight, geometry) and torch.is_grad_enabled():
        return _DepthwiseConv2d.apply(x, weight, bias, geometry)
    return F.conv2d(x, weight, bias, *geometry)


def pad_and_shift(x: Tensor, shift: Tensor, padding: Sequence[int]) -> Tensor:
    """Subtract a shift from a padded input, which then isn't 0 outside.

    Args:
        x: (B, C, h, w).
        shift: (C, 1, 1).
        padding: Zeros left, right, above and below.
    """
    # F.pad copies even where there is nothing to pad, and is exported.
    return (F.pad(x, padding) if any(padding) else x) - shift


def affine_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    log_scale: Tensor,
    shift: Tensor,
    geometry: ConvGeometry,
    *,
    scale_bias: bool = False,
) -> Tensor:
    """Compute γ (W ∗ x) + b + β with γ = exp(log_scale) and β = shift, for frozen W and b.

    γ is multiplied into the weight. The gradient of log γ is computed from the output, Σ ∂L/∂y (y -
    b - β), which avoids the weight gradient, about a third of the cost of training a convolution.

    Args:
        x: (B, C_in, h, w).
        weight: (C_out, C_in / groups, kh, kw).
        bias: (C_out,).
        log_scale: (C_out,), or (1,) for all channels.
        shift: Same shape as ``log_scale``.
        geometry: Stride, padding, dilation and groups.
        scale_bias: Compute γ (W ∗ x + b) + β instead.
    """
    return _AffineConv2d.apply(x, weight, bias, log_scale, shift, geometry, scale_bias)


class _DepthwiseConv2d(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, geometry: ConvGeometry
    ) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x, weight)
        ctx.geometry = geometry
        return F.conv2d(x, weight, bias, *geometry)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        need_x, need_weight, need_bias, _ = ctx.needs_input_grad
        return (
            _input_gradient(grad, x, weight, ctx.geometry) if need_x else None,
            _gradients(grad, x, weight, ctx.geometry, (False, True, False))[1]
            if need_weight
            else None,
            grad.sum((0, 2, 3)) if need_bias else None,
            None,
        )


class _AffineConv2d(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        log_scale: Tensor,
        shift: Tensor,
        geometry: ConvGeometry,
        scale_bias: bool,
    ) -> Tensor:
        # exp keeps γ positive, so that a weight's scale can absorb it.
        scale = log_scale.exp()
        weight = weight * scale.reshape(-1, 1, 1, 1)
        # The part of the output that γ doesn't scale.
        fixed = shift.expand_as(bias) if scale_bias else bias + shift
        y = F.conv2d(x, weight, fixed + bias * scale if scale_bias else fixed, *geometry)
        ctx.save_for_backward(x, weight, fixed, y)
        ctx.geometry, ctx.count = geometry, log_scale.numel()
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, weight, fixed, y = ctx.saved_tensors
        grad_x = _input_gradient(grad, x, weight, ctx.geometry) if ctx.needs_input_grad[0] else None
        grad_shift = grad.sum((0, 2, 3))
        # d y / d log γ is what γ scales: y less the fixed part.
        grad_scale = (grad * y).sum((0, 2, 3)) - fixed * grad_shift
        if ctx.count == 1:
            grad_scale, grad_shift = grad_scale.sum()[None], grad_shift.sum()[None]
        return grad_x, None, None, grad_scale, grad_shift, None, None


def _is_dilated_depthwise(weight: Tensor, geometry: ConvGeometry) -> bool:
    return (
        geometry.groups == len(weight) > 1
        and geometry.stride == (1, 1)
        and max(geometry.dilation) > 1
    )


def _input_gradient(grad: Tensor, x: Tensor, weight: Tensor, geometry: ConvGeometry) -> Tensor:
    # The gradient is a full correlation, less the padding of the forward pass.
    padding = [
        d * (k - 1) - p
        for d, k, p in zip(geometry.dilation, weight.shape[2:], geometry.padding, strict=True)
    ]
    if not _is_dilated_depthwise(weight, geometry) or min(padding) < 0:
        return _gradients(grad, x, weight, geometry, (True, False, False))[0]
    # Correlation with the flipped kernel: the forward pass uses oneDNN, torch's backward pass does
    # not in this case.
    return F.conv2d(
        grad, weight.flip(2, 3), None, (1, 1), padding, geometry.dilation, geometry.groups
    )


def _gradients(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: ConvGeometry, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of input, weight and bias; None if not wanted."""
    stride, padding, dilation, groups = geometry
    return torch.ops.aten.convolution_backward(
        grad, x, weight, [len(weight)], stride, padding, dilation, False, (0, 0), groups, wanted
    )
