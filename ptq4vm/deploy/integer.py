"""Quantized layers in ONNX's QDQ format: QuantizeLinear, DequantizeLinear and float operators."""

from typing import Any

import torch
from torch import Tensor, nn

from ptq4vm.quantizers import LearnedScaleFakeQuantize, QuantizedConv2d, QuantizedLayer, QuantSpec
from ptq4vm.quantizers.convolution import ConvGeometry, conv2d, pad_and_shift


class IntegerGrid(nn.Module):
    """Activation quantizer as QuantizeLinear and DequantizeLinear.

    Grids of fewer than 8 bits are simulated: the input is clipped to the grid's range and rounded
    on the 8-bit codes, which gives the same values.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, quantizer: LearnedScaleFakeQuantize) -> None:
        super().__init__()
        self.spec = quantizer.spec
        # ONNX: scalar parameters are per tensor, 1-D parameters are per channel.
        shape = (-1,) if quantizer.scale.numel() > 1 else ()
        self.register_buffer("scale", quantizer.scale.detach().reshape(shape).clone())
        self.register_buffer(
            "zero_point", quantizer.zero_point.detach().reshape(shape).to(_code_type(self.spec))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Round x (B, C, ...) to the grid."""
        if self.spec.bits < 8:
            zero, scale = _like(self.zero_point, x, 1), _like(self.scale, x, 1)
            low, high = (
                (code - zero) * scale for code in (self.spec.quant_min, self.spec.quant_max)
            )
            x = torch.minimum(torch.maximum(x, low), high)
        return _QuantizeDequantize.apply(x, self.scale, self.zero_point)


class IntegerLayer(nn.Module):
    """Calibrated :class:`QuantizedLayer` as integer weight codes, scales and a bias.

    In torch it computes the same as the layer. torch's exporter writes QuantizeLinear and
    DequantizeLinear for quantized inputs and outputs, DequantizeLinear for the stored weight codes,
    and Conv, or MatMul and Add.
    """

    codes: Tensor
    """int8 weight codes in the weight's shape; transposed for linear layers, as MatMul expects."""
    weight_scale: Tensor
    weight_zero_point: Tensor
    bias: Tensor
    bias_scale: Tensor | None
    """Scale of the integer bias per channel; None if the bias is float."""
    input_shift: Tensor | None
    """Subtracted from the channels of the padded input, (C, 1, 1); None if it is 0."""
    input_gain: Tensor | None
    """Multiplies the channels of the input, (C, 1, 1); None if it is 1."""

    def __init__(self, layer: QuantizedLayer) -> None:
        super().__init__()
        if not layer.weight_quantizer.fixed or layer.affine is not None:
            raise RuntimeError("a layer is exported with its weight fixed and its affine absorbed")
        weight = layer.weight_quantizer
        self.geometry, self.input_padding = None, (0, 0, 0, 0)
        if isinstance(layer, QuantizedConv2d):
            self.geometry, self.input_padding = layer.inner_geometry, layer.input_padding
        self.activation = layer.activation
        if weight.spec.bits == 8 and weight.spec.grid != "symmetric":
            raise RuntimeError(
                "codes of 8 bits less a zero point are no integers of 8 bits any more"
            )
        # Runtimes expect weights with zero point 0.
        codes = weight.codes(layer.weight) - weight.zero_point
        scale, bias = weight.scale.flatten().clone(), layer.bias.detach().clone()
        self.register_buffer("bias_scale", None)
        if layer.output_quantizer is not None and layer.input_grid is not None:
            # Next to small weights, a bias may overflow int32 at s_w * s_x: widen the scale.
            step = layer.accumulator_scale().detach()
            wider = (bias.abs() / step / 2**30).clamp(min=1.0)
            codes = (codes / _like(wider, codes, 0)).round()
            scale = scale * wider
            self.bias_scale = step * wider
            bias = (bias / self.bias_scale).round().to(torch.int32)
        codes = codes if self.geometry is not None else codes.T
        self.register_buffer("codes", codes.to(torch.int8).contiguous())
        self.register_buffer("weight_scale", scale)
        self.register_buffer("weight_zero_point", torch.zeros(len(scale), dtype=torch.int8))
        self.register_buffer("bias", bias)
        self.register_buffer("input_shift", layer.input_shift if layer.shifts_input else None)
        # Runtimes multiply faster than they divide; with powers of two the result is the same.
        gain = (
            None if layer.input_scale is None or not layer.scales_input else 1 / layer.input_scale
        )
        self.register_buffer("input_gain", gain)
        self.input_grid = (
            None if layer.input_quantizer is None else IntegerGrid(layer.input_quantizer)
        )
        self.output_grid = (
            None if layer.output_quantizer is None else IntegerGrid(layer.output_quantizer)
        )

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        if self.input_shift is not None:
            x = pad_and_shift(x, self.input_shift, self.input_padding)
        if self.input_gain is not None:
            x = x * self.input_gain
        if self.input_grid is not None:
            x = self.input_grid(x)
        weight = (self.codes, self.weight_scale, self.weight_zero_point)
        x = _Product.apply(x, *weight, self.bias, self.bias_scale, self.geometry)
        if self.activation is not None:
            x = self.activation(x)
        return x if self.output_grid is None else self.output_grid(x)


def _code_type(spec: QuantSpec) -> torch.dtype:
    return torch.int8 if spec.quant_min < 0 else torch.uint8


def _like(parameter: Tensor, x: Tensor, axis: int) -> Tensor:
    """Reshape to broadcast against x: a scalar stays, one value per index goes along ``axis``."""
    return (
        parameter.float()
        if parameter.dim() == 0
        else parameter.float().reshape(-1, *(1,) * (x.dim() - 1 - axis))
    )


class _QuantizeDequantize(torch.autograd.Function):
    """Quantization of (B, C, h, w) to 8-bit codes and back; scale and zero point are () or (C,)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:  # type: ignore[override]
        ends = torch.iinfo(zero_point.dtype)
        scale, zero = _like(scale, x, 1), _like(zero_point, x, 1)
        return ((x / scale).round() + zero).clamp(ends.min, ends.max).sub(zero).mul(scale)

    @staticmethod
    def symbolic(g: Any, x: Any, scale: Any, zero_point: Any) -> Any:
        axis = {"axis_i": 1} if scale.type().dim() else {}
        codes = g.op("QuantizeLinear", x, scale, zero_point, **axis)
        return g.op("DequantizeLinear", codes, scale, zero_point, **axis).setType(x.type())


class _Product(torch.autograd.Function):
    """Convolution, or matrix product if there is no geometry.

    The weight is stored as codes; so is the bias if it has a scale.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        x: Tensor,
        codes: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        bias: Tensor,
        bias_scale: Tensor | None,
        geometry: ConvGeometry | None,
    ) -> Tensor:
        bias, axis = bias if bias_scale is None else bias * bias_scale, int(geometry is None)
        weight = codes.float() * _like(scale, codes, axis)
        return x @ weight + bias if geometry is None else conv2d(x, weight, bias, geometry)

    @staticmethod
    def symbolic(
        g: Any,
        x: Any,
        codes: Any,
        scale: Any,
        zero_point: Any,
        bias: Any,
        bias_scale: Any,
        geometry: ConvGeometry | None,
    ) -> Any:
        if bias.type().scalarType() == "Int":
            bias = g.op("DequantizeLinear", bias, bias_scale, axis_i=0)
        weight = g.op("DequantizeLinear", codes, scale, zero_point, axis_i=int(geometry is None))
        sizes, weight_sizes = x.type().sizes(), codes.type().sizes()
        if geometry is None:
            output = g.op("Add", g.op("MatMul", x, weight), bias)
            return _sized(output, x, sizes and [*sizes[:-1], weight_sizes[1]])
        kernel = weight_sizes[2:]
        output = g.op(
            "Conv",
            x,
            weight,
            bias,
            kernel_shape_i=kernel,
            strides_i=geometry.stride,
            pads_i=[*geometry.padding, *geometry.padding],
            dilations_i=geometry.dilation,
            group_i=geometry.groups,
        )
        reach = [d * (k - 1) + 1 for d, k in zip(geometry.dilation, kernel, strict=True)]
        sides = zip(
            (sizes or ())[2:], geometry.padding, reach, geometry.stride, strict=sizes is not None
        )
        places = [(n + 2 * p - r) // s + 1 for n, p, r, s in sides]
        return _sized(output, x, sizes and [sizes[0], weight_sizes[0], *places])


def _sized(output: Any, x: Any, sizes: list[int] | None) -> Any:
    """Set the output's shape: the exporter has no shape inference for custom symbolics."""
    return output if sizes is None else output.setType(x.type().with_sizes(sizes))
